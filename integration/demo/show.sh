#!/bin/bash
# show.sh IMAGE: the commands of the demo, with containerd and thinsnap from its environment; see main.go.
set -euo pipefail

heading() { printf '\n== %s\n' "$*"; }
# show COMMAND...: prints a command, as a shell accepts it, and runs it.
show() {
	local word line='$'
	for word; do
		[[ $word == *[^A-Za-z0-9_./:=@+-]* ]] && word=${word@Q}
		line+=" $word"
	done
	echo "$line"
	"$@"
}
thinsnap() { "$THINSNAP_PROGRAM" --config "$THINSNAP_CONFIG" "$@"; }

image=$1
echo "registry ${image%%/*}, $(thinsnap version | head -1), $(containerd --version | cut -d' ' -f1,3)"

heading 'Pull an image: each layer becomes a volume'
echo "\$ ctr images pull --plain-http $image"
ctr images pull --plain-http "$image" | tail -1

heading 'Run a container that writes files'
show nerdctl run --name writer --net none "$image" \
	sh -c 'grep " / " /proc/mounts; echo "written by the container" > /hello; rm -r /var/cache; ls -l /hello'

heading 'Commit it to a new image, and run that'
show nerdctl commit writer hello:1
show nerdctl run --name reader --net none hello:1 cat /hello

heading 'What thinsnap reports'
show thinsnap info
echo
show thinsnap tree

heading 'Done: removing it all'
