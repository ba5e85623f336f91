package harness

// EICARHalves returns the two halves of the EICAR test file. It stands nowhere in
// one piece, so that no scanner objects to this source or to the test's binary.
func EICARHalves() (string, string) {
	return `X5O!P%@AP[4\PZX54(P^)7CC)7}`, `$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*`
}

// EICAR returns the 68 bytes of the test file that every scanner calls malicious.
func EICAR() []byte {
	first, second := EICARHalves()
	return append([]byte(first), second...)
}

// WriteEICAR returns the arguments of a shell command that writes the test file
// to path inside a container, and then runs script with $1 set to path.
func WriteEICAR(path, script string) []string {
	first, second := EICARHalves()
	return []string{"sh", "-c", `printf '%s%s' "$2" "$3" > "$1" || exit 99; ` + script, "sh", path, first, second}
}
