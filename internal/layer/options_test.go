package layer

import (
	"reflect"
	"strings"
	"testing"
)

func TestParseOverlay(t *testing.T) {
	for super, want := range map[string]overlayOptions{
		"rw,lowerdir=/a,upperdir=/u,workdir=/w": {lower: []string{"/a"}, upper: "/u"},
		"ro,lowerdir=/a:b:l/C":                  {lower: []string{"/a", "b", "l/C"}},
		// As mountinfo showed it for a:b, c,d, e\f, "g h", i=j on 6.18.
		`rw,lowerdir=a\134:b:c\134\054d:e\134\134f:g\040h:i=j,upperdir=up\134\054\134:\134\134x,workdir=w,uuid=on`: {
			lower: []string{"a:b", "c,d", `e\f`, "g h", "i=j"}, upper: `up,:\x`,
		},
		`rw,lowerdir+=/t/a:b,lowerdir+=/t/e\134f,lowerdir+=/t/c\054d,datadir+=/t/d1,upperdir=/u,metacopy=on`: {
			lower: []string{"/t/a:b", `/t/e\f`, "/t/c,d"}, dataOnly: []string{"/t/d1"}, upper: "/u", metacopy: "on",
		},
		"lowerdir=l1::d1::d2,userxattr,index=on": {lower: []string{"l1"}, dataOnly: []string{"d1", "d2"}, userXattr: true, index: "on"},
		`lowerdir=end\134`:                       {lower: []string{`end\`}},
	} {
		if got, err := parseOverlay(super); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n%+v, %v, want\n%+v", super, got, err, want)
		}
	}
	for _, super := range []string{
		"", "rw", "rw,lowerdir=", "lowerdir=:a", "lowerdir=a:", "lowerdir=a::", "lowerdir=a::b:c", "lowerdir=a:::b", "lowerdir=a,lowerdir=b",
		`lowerdir=a\04`, `lowerdir=a\999`, `lowerdir=a\000b`, `lowerdir=a\777`, "lowerdir+=", "datadir+=/d", "lowerdir=a,upperdir=",
		"lowerdir=" + strings.Repeat("a:", maxLayers) + "a",
	} {
		if got, err := parseOverlay(super); err == nil {
			t.Errorf("%.60q: %+v, want an error", super, got)
		}
	}
}

// FuzzParseOverlay: whatever is parsed names directories, and within bounds.
func FuzzParseOverlay(f *testing.F) {
	for _, seed := range []string{
		"rw,lowerdir=/a:b,upperdir=/u,workdir=/w", `lowerdir=a\134:b:c\134\054d`, "lowerdir+=/a,datadir+=/b", "lowerdir=a::b", `lowerdir=\`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, super string) {
		o, err := parseOverlay(super)
		if err != nil {
			return
		}
		if len(o.lower) == 0 || len(o.lower)+len(o.dataOnly) > maxLayers {
			t.Errorf("%d layers", len(o.lower))
		}
		for _, name := range append(o.lower, o.dataOnly...) {
			if name == "" || strings.IndexByte(name, 0) >= 0 && strings.IndexByte(super, 0) < 0 {
				t.Errorf("directory %q", name)
			}
		}
	})
}

// FuzzIsClean: a path that passes stays where it is looked up.
func FuzzIsClean(f *testing.F) {
	for _, seed := range []string{"/a/b", "/", "", "/a/../b", "/a//b", "/./a", "/a/", "/..", "/...", "/a\x00b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, p string) {
		clean := isClean(p)
		unsafe := !strings.HasPrefix(p, "/") || strings.Contains(p+"/", "/../") || strings.Contains(p+"/", "//") ||
			strings.Contains(p+"/", "/./") || strings.Contains(p, "\x00") || len(p) > maxHint
		if clean == unsafe {
			t.Errorf("%q: clean %v", p, clean)
		}
	})
}
