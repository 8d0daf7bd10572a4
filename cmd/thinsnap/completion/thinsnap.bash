# Completion of thinsnap for bash. "thinsnap complete" says what can stand where the cursor is; no word of the command line
# and nothing that it prints is ever evaluated, for keys of snapshots are whatever clients made them.
_thinsnap() {
	local cur words cword line value prefix
	COMPREPLY=()
	# Of bash-completion: it puts words together again that readline parts at these signs.
	if declare -F _get_comp_words_by_ref >/dev/null; then
		_get_comp_words_by_ref -n =:@ cur words cword || return
	else
		cur=${COMP_WORDS[COMP_CWORD]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
	fi
	# What is escaped below would be escaped twice within quotes.
	case $cur in *[\'\"\`\$]*) return ;; esac
	words=("${words[@]:1:cword-1}")
	while IFS= read -r line; do
		case $line in
		:files) compopt -o default ;;
		:directories) compopt -o dirnames ;;
		?*)
			printf -v value %q "${line%%$'\t'*}"
			COMPREPLY+=("$value")
			;;
		esac
	done < <("${COMP_WORDS[0]}" complete "${words[@]//\\/}" "${cur//\\/}" 2>/dev/null)
	# Readline replaces only what comes after the last of these signs.
	prefix=${cur%"${cur##*[=:@]}"}
	COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
}
complete -F _thinsnap thinsnap
