#compdef thinsnap
# Completion of thinsnap for zsh. "thinsnap complete" prints the candidates. compadd quotes them.
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
# In the function path this file is the function itself; otherwise it is sourced.
if [[ $funcstack[1] = _thinsnap ]]; then
	_thinsnap "$@"
else
	compdef _thinsnap thinsnap
fi
