# Completion of thinsnap for fish. "thinsnap complete" prints the candidates. fish escapes them.
function __thinsnap_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct | string unescape)
    set -q current[1]; or set current ''
    for line in (command $words[1] complete $words[2..-1] $current 2>/dev/null)
        switch $line
            case :files
                __fish_complete_path (string replace -r '^--[^=]*=' '' -- $current)
            case :directories
                __fish_complete_directories (string replace -r '^--[^=]*=' '' -- $current)
            case '*'
                printf '%s\n' $line
        end
    end
end
complete -c thinsnap -f -a '(__thinsnap_complete)'
