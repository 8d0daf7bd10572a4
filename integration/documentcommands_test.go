package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// shownBy maps the commands of documents, as regular expressions, to the test or the part of `make test` that runs
// them. If none runs a command, its value is "reason: " and the reason. cmd/thinsnap tests thinsnap's own commands.
var shownBy = map[string]string{
	"cp metadata metadata.before":                                   "TestKernelTransactionIDByHand",
	"thin_check --clear-needs-check-flag metadata":                  "TestKernelTransactionIDByHand",
	"thin_dump metadata > metadata.xml":                             "TestKernelTransactionIDByHand",
	`sed -i '1s/transaction="OLD"/transaction="NEW"/' metadata.xml`: "TestKernelTransactionIDByHand",
	"thin_restore -i metadata.xml -o metadata":                      "TestKernelTransactionIDByHand",
	`thinsnap .*`:                          "TestCommandsInDocuments",
	`source <\(thinsnap completion bash\)`: "TestBashCompletes",
	`source <\(thinsnap completion zsh\)`:  "TestZshCompletes",

	`make(| deb)`:                                           "TestPackage",
	`(GOARCH=arm64 )?make deb`:                              "TestPackage",
	`(sudo )?make image`:                                    "TestImage",
	`make release( .*)?`:                                    "TestRelease",
	`make rpm`:                                              "TestPackage",
	`dnf install \./bin/thinsnap-.*\.rpm`:                   "reason: the package was not installed on Fedora or RHEL",
	`make (demo|test|kernel-test .*)`:                       "reason: CI and new users run it",
	`apt install \./bin/thinsnap_.*`:                        "TestInstalledPackage",
	`apt install \./thinsnap_.*`:                            "TestQuickStart",
	`apt purge thinsnap`:                                    "TestQuickStart",
	`systemctl (enable --now|start|status) thinsnap.*`:      "TestUnderSystemd",
	`systemctl stop (containerd )?thinsnap.socket thinsnap`: "TestUnderSystemd",
	`(cp --archive|mv) /var/lib/thinsnap .*`:                "TestMovedRoot",
	`cp --archive /etc/containerd /etc/containerd.before`:   "reason: a copy of files",
	`systemctl (start|stop|restart) containerd`:             "reason: containerd's own unit",
	`systemctl disable thinsnap.socket thinsnap`:            "reason: systemd's own command",
	`thin_(check|dump|restore) .*/dev/METADATA`:             "TestPoolWhoseTimeEnds",
	`sed --regexp-extended .*pool\.xml > reset\.xml`:        "TestPoolWhoseTimeEnds",
	`dmsetup (suspend|resume) thinsnap`:                     "TestMovedWithThePoolInTheKernel",
	`sudoedit /etc/thinsnap/config.toml`:                    "reason: an editor",
	`install .*`:                                            "reason: a copy of files to the system's directories",
	`dmsetup (create|remove) kept.*`:                        "reason: a person looks at a volume that is kept",
	`mount -o ro,noload /dev/mapper/kept /mnt`:              "reason: the same",
	`umount /mnt`:                                           "reason: the same",
	`dmesg \| grep .*`:                                      "reason: it reads the kernel's messages",

	`ctr image pull --snapshotter thinsnap .*`:                               "TestContainerd",
	`ctr( --namespace \S+)? run .*--snapshotter thinsnap .*`:                 "TestContainerd",
	`ctr snapshots --snapshotter thinsnap (tree|mounts|rm).*`:                "TestContainerd",
	`ctr tasks (exec|start|rm) .*`:                                           "TestContainerd",
	`ctr containers rm .*`:                                                   "TestContainerd",
	`curl --unix-socket /run/thinsnap/admin.sock -X POST .*/v1/fork\?key=.*`: "TestFork",
	`curl --unix-socket /run/thinsnap/admin.sock http://localhost/v1/info`:   "TestClientAndServer",
	`nerdctl --snapshotter thinsnap (run|commit) .*`:                         "TestContainerd",
	`ctr -n k8s.io images import --snapshotter overlayfs .*`:                 "reason: containerd's own import, of the image of TestImage",
	`kubectl apply -k deploy/kubernetes/overlays/containerd/(install|serve)`: "TestOverlays",
	`kubectl (label node|-n kube-system (rollout status|get pods|exec POD|wait)|get runtimeclass|apply -f (pod|deploy/kubernetes/serve/runtimeclass).yaml|wait --for=condition=Ready --timeout=5m pod/first).*`: "reason: no test has a cluster",
	`curl --unix-socket /run/thinsnap/admin.sock http://localhost/metrics`: "TestDashboardOfADaemon",

	`go test \./integration -run TestPageOfARecording .*`: "TestPageOfARecording",
	`go test .*-bench Scale .*`:                           "reason: a benchmark",
	`(THINSNAP_KERNEL_TESTS=1 )?go test .*`:               "reason: it runs one test",
	`integration/setup\.sh .*`:                            "reason: the first step of every target of make",
}

// TestDocumentsRunTestedCommands: each command in a code block of a document matches an entry of shownBy.
func TestDocumentsRunTestedCommands(t *testing.T) {
	programs := regexp.MustCompile(`^([A-Z_]+=\S+ )*(sudo|thinsnap|make|apt|apt-get|dnf|systemctl|ctr|nerdctl|crictl|kubectl|curl|go|` +
		`source|sed|sudoedit|install|dmesg|dmsetup|lv\w+|vg\w+|pv\w+|losetup|mount|umount|cp|mv|rm|tar|rsync|skopeo|docker|` +
		`fallocate|truncate|integration/\S+|fstrim|e2fsck|xfs_repair|thin_\w+|journalctl|findmnt|fuser|semanage|restorecon|chcon)\s`)
	tests := testNames(t)
	used := make(map[string]bool)
	for path, text := range documents(t) {
		if path == "../docs/demo.md" {
			continue // the output of `make demo`
		}
		for _, line := range codeLines(text) {
			command, _, _ := strings.Cut(line, "    #")
			command, _, _ = strings.Cut(strings.TrimSpace(command), " # ")
			if !programs.MatchString(command + " ") {
				continue
			}
			for part := range strings.SplitSeq(command, "&&") {
				part = strings.TrimPrefix(strings.TrimSpace(part), "sudo ")
				known := false
				for pattern := range shownBy {
					if regexp.MustCompile(`^` + pattern + `$`).MatchString(part) {
						known, used[pattern] = true, true
					}
				}
				if !known {
					t.Errorf("%s: no test runs %q: add it to shownBy, with its test or the reason", path, part)
				}
			}
		}
	}
	for pattern, shown := range shownBy {
		if !used[pattern] {
			t.Errorf("no document has a command %s", pattern)
		}
		if !strings.HasPrefix(shown, "reason: ") && !slices.Contains(tests, shown) {
			t.Errorf("%s: test %s does not exist", pattern, shown)
		}
	}
}

// codeLines returns the lines of a document's code blocks; a command over several lines is one.
func codeLines(text string) []string {
	var lines []string
	fenced, continued := false, false
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
			continue
		}
		if !fenced && !strings.HasPrefix(line, "    ") {
			continue
		}
		line, more := strings.CutSuffix(strings.TrimSpace(line), `\`)
		if continued {
			lines[len(lines)-1] += line
		} else {
			lines = append(lines, line)
		}
		continued = more
	}
	return lines
}

func testNames(t *testing.T) []string {
	t.Helper()
	function := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	var names []string
	require.NoError(t, filepath.WalkDir("..", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, found := range function.FindAllStringSubmatch(string(text), -1) {
			names = append(names, found[1])
		}
		return err
	}))
	return names
}
