#!/bin/bash
# run.sh: shows the gate at work. `make demo` calls it after installing what is
# missing and building the binaries.
#
# Starts an agent with nothing but the built-in hash list, builds a small image
# from this machine's busybox, and runs containers with podman: what is clean must
# work, what is malicious must not open. Everything happens in one scratch
# directory, on a socket, a podman storage and a cgroup of its own; nothing is left
# behind. Exits 1 if any outcome is not the expected one.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=$PWD/bin
export PATH="$PATH:/usr/sbin:/sbin"
work=$(mktemp -d "${TMPDIR:-/tmp}/assay-demo-XXXXXX")
cgroup=$(basename "$work")
socket=$work/agent.sock
agent_pid=
wrong=0

# ---------------------------------------------------------------- clean up

cleanup() {
	local code=$?
	trap - EXIT INT TERM
	set +e
	if [[ -e $work/containers.conf ]]; then
		pod rm --all --force --time 0 >/dev/null 2>&1
	fi
	if [[ -n $agent_pid ]]; then
		kill "$agent_pid" 2>/dev/null
		# Not by wait: the second one is no child of this shell.
		tail --pid="$agent_pid" -f /dev/null
	fi
	awk -v dir="$work/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r |
		while IFS= read -r mount; do umount "$mount"; done
	find /sys/fs/cgroup -depth -type d -path "*/$cgroup*" -exec rmdir {} + 2>/dev/null
	rm -rf "$work"
	exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

die() {
	printf 'demo: %s\n' "$*" >&2
	if [[ -s $work/assayd.log ]]; then
		printf 'demo: the agent said:\n' >&2
		sed 's/^/  /' "$work/assayd.log" >&2
	fi
	exit 1
}

# quiet runs a command whose output matters only if it fails.
quiet() { "$@" >"$work/said" 2>&1 || die "$* failed: $(<"$work/said")"; }

# ---------------------------------------------------------------- the image

# The EICAR test file stands nowhere in one piece: a scanner on this machine has
# nothing to object to in this script.
eicar_first='X5O!P%@AP[4\PZX54(P^)7CC)7}'
# shellcheck disable=SC2016 # the dollar sign is part of the file
eicar_second='$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*'

# build_image makes an image of three layers, with busybox at the bottom.
build_image() {
	local layer=$work/layer busybox applet
	busybox=$(command -v busybox)

	mkdir -p "$layer"/0/{bin,data,tmp,proc,sys,dev,etc} "$layer"/1/{data,opt} "$layer"/2/data
	cp "$busybox" "$layer/0/bin/busybox"
	for applet in sh cat echo; do ln -s busybox "$layer/0/bin/$applet"; done
	echo "Nothing wrong with this one." >"$layer/0/data/clean.txt"

	printf '%s%s' "$eicar_first" "$eicar_second" >"$layer/1/data/eicar.txt"
	# A program that works, but whose hash somebody has put on a list.
	cp "$busybox" "$layer/1/opt/busybox"
	echo "a copy with a hash of its own" >>"$layer/1/opt/busybox"
	printf '%s:%s:Demo.Listed.Program\n' \
		"$(sha256sum <"$layer/1/opt/busybox" | cut -d ' ' -f 1)" \
		"$(stat -c %s "$layer/1/opt/busybox")" >"$work/listed.hsb"

	echo "The topmost layer." >"$layer/2/data/top.txt"

	quiet umoci init --layout "$work/image"
	quiet umoci new --image "$work/image:demo"
	for n in 0 1 2; do quiet umoci insert --image "$work/image:demo" "$layer/$n" /; done
	quiet umoci config --image "$work/image:demo" --config.env PATH=/bin
}

# ---------------------------------------------------------------- agent and podman

start_agent() {
	cat >"$work/assay.yaml" <<-CONFIG
		socket: $socket
		state: $work/state
		scanners:
		  - name: built-in
		    hashlist: {files: [$work/listed.hsb]}
		tenants:
		  - name: default
		    match: {}
		    mode: enforce
		    stages:
		      - {scanners: [built-in], decide: all}
	CONFIG
	"$bin/assayd" --config "$work/assay.yaml" </dev/null 2>"$work/assayd.log" &
	agent_pid=$!
	disown # the shell has nothing to say about its end
	local tries
	for ((tries = 0; tries < 100; tries++)); do
		kill -0 "$agent_pid" 2>/dev/null || die "the agent did not start"
		if "$bin/assay" --socket "$socket" status >"$work/status" 2>&1; then return; fi
		sleep 0.1
	done
	die "the agent did not become ready: $(<"$work/status")"
}

pod() {
	CONTAINERS_CONF=$work/containers.conf podman \
		--root "$work/storage" --runroot "$work/run" --tmpdir "$work/tmp" --storage-driver overlay \
		--cgroup-manager cgroupfs --events-backend file --runtime runc --hooks-dir "$work/hooks" "$@"
}

# pull names the image by a relative path: podman makes a name of it, and names
# have no capital letters.
pull() { (cd "$work" && pod pull --quiet oci:image:demo); }

start_podman() {
	local nofile nproc
	# podman's defaults are more than some machines allow.
	nofile=$(ulimit -Hn) nproc=$(ulimit -Hu)
	[[ $nofile == unlimited || $nofile -gt 20000 ]] && nofile=20000
	[[ $nproc == unlimited || $nproc -gt 4096 ]] && nproc=4096
	printf '[containers]\ndefault_ulimits = ["nofile=%s:%s", "nproc=%s:%s"]\n' \
		"$nofile" "$nofile" "$nproc" "$nproc" >"$work/containers.conf"
	mkdir "$work/hooks"
	quiet "$bin/assay" --socket "$socket" install podman --hooks-dir "$work/hooks"
	quiet pull
	image=$(tail -n 1 "$work/said")
}

# ---------------------------------------------------------------- the scenes

# scene EXPECTED TEXT MARKER COMMAND...: runs a container and prints what was
# expected and what was seen. The command was allowed if it prints MARKER.
scene() {
	local expected=$1 text=$2 marker=$3 seen=denied verdict=ok
	shift 3
	pod run --rm --network none --cgroup-parent "/$cgroup" --entrypoint "$1" "$image" "${@:2}" \
		</dev/null >"$work/out" 2>"$work/err" || true
	if grep -qF -- "$marker" "$work/out"; then seen=allowed; fi
	if [[ $seen != "$expected" ]]; then
		verdict=WRONG
		wrong=1
	elif [[ $seen == denied ]] && ! grep -qiE 'operation not permitted|permission denied' "$work/err"; then
		verdict="WRONG: failed for another reason"
		wrong=1
	fi
	printf '  %-52s %-9s %-9s %s\n' "$text" "$expected" "$seen" "$verdict"
	if [[ -s $work/err ]]; then
		# The runtime's message is long; its end is what counts.
		sed -n '$p' "$work/err" | cut -c 1-400 | grep -oiE '[^:]*: [^:]*$' | sed 's/^ */      /'
	fi
}

# await_ahead waits until the agent has scanned the image's layers, which it does in
# the background when a container starts.
await_ahead() {
	local tries
	for ((tries = 0; tries < 100; tries++)); do
		if "$bin/assay" --socket "$socket" -o json status | grep -q '"state": "idle"'; then return; fi
		sleep 0.1
	done
	die "the agent does not come to an end with the image's layers"
}

# replace_agent kills the agent while a container is about to read, and starts another.
replace_agent() {
	sleep 0.9
	kill -9 "$agent_pid"
	sleep 1
	start_agent
	echo "$agent_pid" >"$work/agent.pid"
}

# scans prints how many files scanners were asked about so far.
scans() { "$bin/assay" --socket "$socket" -o json status | awk -F '[:,]' '/"scans":/ { n += $2 } END { print n + 0 }'; }

echo "Assay demo: one agent, its built-in hash list, and podman. No scanner process, no registry."
echo
echo "  building an image of three layers from busybox"
build_image
echo "  starting the agent on $socket"
start_agent
echo "  writing podman's hook and pulling the image into a scratch storage"
start_podman
echo
printf '  %-52s %-9s %-9s\n' "WHAT THE CONTAINER DOES" "EXPECTED" "SEEN"
scene allowed "reads a clean file" "Nothing wrong" cat /data/clean.txt
scene allowed "reads a clean file that it has written itself" "fine" \
	sh -c 'echo fine > /tmp/new; cat /tmp/new'
scene denied "reads EICAR from a lower layer of the image" "EICAR" cat /data/eicar.txt
# shellcheck disable=SC2016 # $1 and $2 are the container's shell's
scene denied "writes EICAR, then reads it" "EICAR" \
	sh -c 'printf "%s%s" "$1" "$2" > /tmp/new; cat /tmp/new' sh "$eicar_first" "$eicar_second"
scene denied "has a program on the hash list as its entrypoint" "it ran" /opt/busybox echo "it ran"
scene denied "executes that program under another name (hard link)" "it ran" \
	sh -c '/bin/busybox ln /opt/busybox /tmp/busybox && /tmp/busybox echo it ran'

await_ahead
before=$(scans)
scene denied "reads EICAR in one more container of the image" "EICAR" cat /data/eicar.txt
scanned=$(($(scans) - before))
echo "      by the verdict kept for its layer: $scanned files scanned"
[[ $scanned == 0 ]] || wrong=1

echo
echo "What the agent keeps for the next container (assay verdicts --by layer):"
echo
"$bin/assay" --socket "$socket" verdicts --by layer >"$work/verdicts" 2>&1 || die "assay verdicts: $(<"$work/verdicts")"
sed 's/^/  /' "$work/verdicts"
echo "  The list needs no look into a file whose length is not on it: two files had to be scanned."

echo
echo "What the agent recorded (assay events):"
echo
"$bin/assay" --socket "$socket" events >"$work/events" 2>&1 || die "assay events: $(<"$work/events")"
sed 's/^/  /' "$work/events"

# The same outcomes have to be on record.
records=$("$bin/assay" --socket "$socket" -o json events --decision deny)
for path in /data/eicar.txt /tmp/new /opt/busybox /tmp/busybox; do
	grep -qF "\"path\":\"$path\"" <<<"$records" || {
		echo "demo: no record of the denied $path" >&2
		wrong=1
	}
done

echo
echo "When the agent is killed, opens wait for the next one:"
echo
replace_agent &
scene denied "reads EICAR while there is no agent for a second" "EICAR" sh -c 'sleep 1; cat /data/eicar.txt'
wait $! || die "the agent could not be replaced"
agent_pid=$(<"$work/agent.pid")

echo
if [[ $wrong != 0 ]]; then
	die "some outcomes are wrong"
fi
echo "All outcomes are as expected. Nothing is left behind."
