package tenant

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A Problem is one thing that is wrong with a configuration file.
type Problem struct {
	File    string // as it was named to Load or Parse
	Line    int    // from 1
	Column  int    // from 1, in characters
	Message string // what is wrong
	Remedy  string // what to do about it; never empty
}

// String returns "file:line:column: message (remedy)".
func (p Problem) String() string {
	return fmt.Sprintf("%s:%d:%d: %s (%s)", p.File, p.Line, p.Column, p.Message, p.Remedy)
}

// An Error says everything that is wrong with one configuration file. After a
// syntax error nothing else can be judged, so that one stands alone.
type Error struct {
	Problems []Problem // in file order, from 1 to 100
}

// Error returns the problems, one a line.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// maxProblems bounds an Error: whoever has more made one mistake many times.
const maxProblems = 100

// A position is a place in the file, both numbers from 1.
type position struct{ line, column int }

// problems collects what is wrong with one file.
type problems struct {
	file  string
	found []Problem
}

// add notes a problem; format and args are its message. What is found after the
// first maxProblems is left out.
func (p *problems) add(at position, remedy, format string, args ...any) {
	if len(p.found) == maxProblems {
		return
	}
	p.found = append(p.found, Problem{
		File: p.file, Line: at.line, Column: at.column,
		Message: fmt.Sprintf(format, args...), Remedy: remedy,
	})
}

// err returns all problems in file order as an *Error, or nil if there are none.
func (p *problems) err() error {
	if len(p.found) == 0 {
		return nil
	}
	slices.SortStableFunc(p.found, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return &Error{Problems: p.found}
}
