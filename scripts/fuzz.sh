#!/bin/bash
# fuzz.sh DURATION: runs every fuzz target of the product's module for DURATION
# (as of `go test -fuzztime`), one after another, and stops at the first finding.
set -euo pipefail

duration=${1:?usage: fuzz.sh DURATION, for instance 10s}
found=0
for package in $(go list ./...); do
	for target in $(go test -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
		found=1
		echo "fuzz: $package $target for $duration"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$duration" "$package"
	done
done
if [[ $found == 0 ]]; then
	echo "fuzz: no fuzz target found" >&2
	exit 1
fi
