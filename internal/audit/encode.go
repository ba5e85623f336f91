package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// AppendLine appends the record to buf as one line of JSON, its newline
// included. On an error, which only a time outside the years 0 to 9999 causes,
// buf is left as it was.
func (r *Record) AppendLine(buf *bytes.Buffer) error {
	n := buf.Len()
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false) // paths stay readable
	if err := enc.Encode(r); err != nil {
		buf.Truncate(n)
		return fmt.Errorf("encode record %d: %w", r.Seq, err)
	}
	return nil
}

// UnmarshalText decodes a reason from its name. An unknown name is an error:
// the set is closed.
func (r *Reason) UnmarshalText(text []byte) error {
	for i, name := range reasonNames() {
		if name == string(text) {
			*r = Reason(i)
			return nil
		}
	}
	return fmt.Errorf("unknown reason %q: the record comes from another version of assay", text)
}
