//go:build !race

package guard

// forgotten is how many allocations an event may cost in a test.
const forgotten = 0
