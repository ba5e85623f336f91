// Command workload is what the benchmark builds in a container: a small program
// with imports enough to keep the compiler and the linker busy for some seconds.
package main

import (
	"fmt"
	"sort"
	"strings"
)

func main() {
	words := strings.Fields("a small program that needs the library")
	sort.Strings(words)
	fmt.Println(strings.Join(words, " "))
}
