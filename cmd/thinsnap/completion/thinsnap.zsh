#compdef thinsnap
# Completion of thinsnap for zsh. "thinsnap complete" says what can stand where the cursor is. compadd quotes what has to be.
_thinsnap() {
	local line
	local -a values shown
	for line in "${(@f)$(${(Q)words[1]} complete "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}"; do
		case $line in
		:files) compset -P '*='; _files; return ;;
		:directories) compset -P '*='; _files -/; return ;;
		?*)
			values+=("${line%%$'\t'*}")
			shown+=("${line/$'\t'/  -- }")
			;;
		esac
	done
	(( $#values )) && compadd -l -d shown -a -- values
}
# The file is sourced, or is itself the function when it lies in the function path.
if [[ $funcstack[1] = _thinsnap ]]; then
	_thinsnap "$@"
else
	compdef _thinsnap thinsnap
fi
