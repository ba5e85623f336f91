package layer

import (
	"errors"
	"fmt"
	"strings"
)

// maxLayers bounds the lower directories of one overlay: OVL_MAX_STACK of
// fs/overlayfs/params.h.
const maxLayers = 500

// overlayOptions are what the super options of an overlay say about its layers.
type overlayOptions struct {
	lower     []string // topmost first
	dataOnly  []string // directories that only hold data for metacopy files
	upper     string   // "" for an overlay that cannot be written
	userXattr bool     // its attributes are named user.overlay.*
	index     string   // "on", "off", or "" for the kernel's default
	metacopy  string   // the same
}

var errOptions = errors.New("mount options of the overlay")

// parseOverlay reads the super options of an overlay mount as mountinfo shows
// them (ovl_show_options in fs/overlayfs/params.c): separated by commas, with
// octal escapes, and with backslashes of overlayfs' own below these.
func parseOverlay(super string) (overlayOptions, error) {
	var o overlayOptions
	for option := range strings.SplitSeq(super, ",") {
		key, escaped, _ := strings.Cut(option, "=")
		value, err := unescapeOctal(escaped)
		if err == nil {
			err = o.set(key, value)
		}
		if err != nil {
			return overlayOptions{}, fmt.Errorf("%w: %s: %w", errOptions, key, err)
		}
		if len(o.lower)+len(o.dataOnly) > maxLayers {
			return overlayOptions{}, fmt.Errorf("%w: more than %d layers", errOptions, maxLayers)
		}
	}
	if len(o.lower) == 0 {
		return overlayOptions{}, fmt.Errorf("%w: no lowerdir", errOptions)
	}
	return o, nil
}

// set takes one option. Options that say nothing about the layers are ignored.
func (o *overlayOptions) set(key, value string) error {
	var err error
	switch key {
	case "lowerdir":
		if o.lower != nil || o.dataOnly != nil {
			return errors.New("given twice")
		}
		o.lower, o.dataOnly, err = splitLower(value)
	case "lowerdir+":
		o.lower, err = append(o.lower, value), mustName(value)
	case "datadir+":
		o.dataOnly, err = append(o.dataOnly, value), mustName(value)
	case "upperdir":
		o.upper = unescapeBackslash(value)
		err = mustName(o.upper)
	case "userxattr":
		o.userXattr = true
	case "index":
		o.index = value
	case "metacopy":
		o.metacopy = value
	}
	return err
}

func mustName(directory string) error {
	if directory == "" {
		return errors.New("empty directory name")
	}
	return nil
}

// splitLower splits a list of directories at its colons: what follows the first
// double one only holds data. A backslash takes the next character as it is.
func splitLower(list string) (lower, dataOnly []string, err error) {
	var name strings.Builder
	data := false
	add := func() error {
		if data {
			dataOnly = append(dataOnly, name.String())
		} else {
			lower = append(lower, name.String())
		}
		err := mustName(name.String())
		name.Reset()
		return err
	}
	for i := 0; i < len(list); i++ {
		switch c := list[i]; {
		case c == '\\' && i+1 < len(list):
			i++
			name.WriteByte(list[i])
		case c == ':':
			if err := add(); err != nil {
				return nil, nil, err
			}
			double := i+1 < len(list) && list[i+1] == ':'
			if data && !double {
				return nil, nil, errors.New("a layer below one that only holds data")
			}
			if double {
				data = true
				i++
			}
		default:
			name.WriteByte(c)
		}
	}
	return lower, dataOnly, add()
}

// unescapeBackslash removes the backslashes in front of other characters.
func unescapeBackslash(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// unescapeOctal undoes the kernel's seq_escape: three octal digits for a byte.
func unescapeOctal(s string) (string, error) {
	if !strings.Contains(s, `\`) {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		if i+3 >= len(s) {
			return "", errors.New("escape cut short")
		}
		value := 0
		for _, digit := range []byte(s[i+1 : i+4]) {
			if digit < '0' || digit > '7' {
				return "", errors.New("escape that is not octal")
			}
			value = value<<3 | int(digit-'0')
		}
		if value == 0 || value > 0xff {
			return "", errors.New("escape of no character")
		}
		b.WriteByte(byte(value))
		i += 3
	}
	return b.String(), nil
}
