# Completion of thinsnap for bash. "thinsnap complete" prints the candidates. Neither the words of the command line nor the
# candidates are evaluated, because clients choose the keys of snapshots.
_thinsnap() {
	local cur words cword line value prefix
	COMPREPLY=()
	# From bash-completion: joins words that readline splits at these characters.
	if declare -F _get_comp_words_by_ref >/dev/null; then
		_get_comp_words_by_ref -n =:@ cur words cword || return
	else
		cur=${COMP_WORDS[COMP_CWORD]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
	fi
	# Inside quotes, the escapes below would be escaped again.
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
	# Readline replaces only the text after the last of these characters.
	prefix=${cur%"${cur##*[=:@]}"}
	COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
}
complete -F _thinsnap thinsnap
