#!/bin/bash
# setup.sh demo|test|containerd|bench|lint: makes sure that the programs which that target runs
# are there. Says what is missing and installs it with apt; with
# ASSAY_NO_INSTALL=1 it only says so and fails. Installs no service: whatever a
# package would start stays stopped.
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }

# A need is "what to look for:Debian package"; a path that starts with / must
# exist, anything else must be a command. Go needs the certificates to fetch modules.
# What a target can do without stands in optional.
optional=()
certificates=/etc/ssl/certs/ca-certificates.crt:ca-certificates
case "${1:-}" in
lint)
	needs=("$certificates" shellcheck:shellcheck)
	;;
demo)
	needs=("$certificates" podman:podman runc:runc umoci:umoci busybox:busybox-static)
	;;
containerd)
	needs=("$certificates" runc:runc umoci:umoci busybox:busybox-static tar:tar mkfs.erofs:erofs-utils)
	;;
bench)
	needs=("$certificates" runc:runc busybox:busybox-static cc:gcc /usr/include/stdlib.h:libc6-dev
		nsenter:util-linux clamd:clamav-daemon clamdscan:clamdscan)
	optional=(fapolicyd:fapolicyd)
	;;
test)
	needs=("$certificates" podman:podman runc:runc crun:crun umoci:umoci busybox:busybox-static
		clamd:clamav-daemon bindfs:bindfs gcc:gcc strace:strace prlimit:util-linux
		/usr/include/stdlib.h:libc6-dev)
	;;
*)
	echo "usage: $0 demo|test|containerd|bench|lint" >&2
	exit 2
	;;
esac

# Runtimes and daemons live in the sbin folders.
export PATH="$PATH:/usr/sbin:/sbin"

# find_missing NEED...: sets missing to the packages that are.
find_missing() {
	missing=()
	local need what
	for need in "$@"; do
		what=${need%%:*}
		if [[ $what == /* ]]; then
			[[ -e $what ]] || missing+=("${need#*:}")
		else
			command -v "$what" >/dev/null || missing+=("${need#*:}")
		fi
	done
}

command -v go >/dev/null || {
	say "Go is missing: install Go 1.26 or newer from https://go.dev/dl/ and put it into PATH"
	exit 1
}
if [[ $1 != lint && $(id -u) != 0 ]]; then
	say "'make $1' runs containers and fanotify marks: run it as root"
	exit 1
fi

find_missing "${optional[@]}"
wanted=("${missing[@]}")
if [[ ${#wanted[@]} -ne 0 ]] && { [[ ${ASSAY_NO_INSTALL:-} == 1 ]] || ! command -v apt-get >/dev/null; }; then
	say "goes on without: ${wanted[*]}"
	wanted=()
fi
find_missing "${needs[@]}"
[[ ${#missing[@]} -eq 0 && ${#wanted[@]} -eq 0 ]] && exit 0

say "missing packages: ${missing[*]} ${wanted[*]}"
if [[ ${ASSAY_NO_INSTALL:-} == 1 ]]; then
	say "ASSAY_NO_INSTALL=1 is set: install them yourself, then try again"
	exit 1
fi
if ! command -v apt-get >/dev/null; then
	say "this is no Debian or Ubuntu: install them with this system's package manager, then try again"
	exit 1
fi
if [[ $(id -u) != 0 ]]; then
	say "not root: run 'apt-get install ${missing[*]}' as root, then try again"
	exit 1
fi

# Services that the packages bring must not start: policy-rc.d is Debian's way to
# say so. A file that is already there is the administrator's and stays.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
	trap 'rm -f "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 0755 "$policy"
fi

say "installing them with apt-get (ASSAY_NO_INSTALL=1 would refuse instead)"
export DEBIAN_FRONTEND=noninteractive
install() {
	apt-get install -y -q --no-install-recommends "$@" </dev/null >&2
}
if [[ ${#missing[@]} -ne 0 ]] && { ! apt-cache policy "${missing[@]}" 2>/dev/null | grep -q 'Candidate: [0-9]' || ! install "${missing[@]}"; }; then
	say "refreshing the package lists"
	apt-get update -q </dev/null >&2
	install "${missing[@]}"
fi
for package in "${wanted[@]}"; do
	install "$package" || say "goes on without $package"
done

# Nor may they start with the next boot: the tests bring a clamd of their own.
if [[ " ${missing[*]} " == *" clamav-daemon "* ]] && command -v systemctl >/dev/null; then
	systemctl disable clamav-daemon.service clamav-daemon.socket clamav-freshclam.service >/dev/null 2>&1 || true
fi
# Least of all this one, which would guard the whole machine.
if [[ " ${wanted[*]} " == *" fapolicyd "* ]] && command -v systemctl >/dev/null; then
	systemctl disable fapolicyd.service >/dev/null 2>&1 || true
fi

find_missing "${needs[@]}"
if [[ ${#missing[@]} -ne 0 ]]; then
	say "still missing after the installation: ${missing[*]}"
	exit 1
fi
