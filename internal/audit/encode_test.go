package audit

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestRecordLine(t *testing.T) {
	rec := Record{
		Time: time.Date(2026, 11, 2, 3, 4, 5, 6000, time.UTC), Seq: 7, Tenant: "payments",
		Container: Container{ID: "c1", Name: "web", Pod: "web-0", Namespace: "pay-eu", Image: "shop:1"},
		Op:        "exec", Path: "/tmp/a<b>&\nc", PID: 42, Exe: "/bin/sh",
		File:     File{Layer: "sha256:00", Identity: "id", Size: 68, Pristine: true},
		Decision: "deny", Verdict: "malicious", Mark: true, Source: "scan", Reason: ReasonMalicious,
		Scanners: []Scanner{{Name: "hashes", Generation: "g", Verdict: "malicious", Signature: "Eicar", Micros: 5}},
		Micros:   9,
	}
	var buf bytes.Buffer
	if err := rec.AppendLine(&buf); err != nil {
		t.Fatal(err)
	}
	const want = `{"time":"2026-11-02T03:04:05.000006Z","seq":7,"tenant":"payments",` +
		`"container":{"id":"c1","name":"web","pod":"web-0","namespace":"pay-eu","image":"shop:1"},` +
		`"op":"exec","path":"/tmp/a<b>&\nc","pid":42,"exe":"/bin/sh",` +
		`"file":{"layer":"sha256:00","identity":"id","size":68,"pristine":true},` +
		`"decision":"deny","verdict":"malicious","mark":true,"source":"scan","reason":"malicious",` +
		`"scanners":[{"name":"hashes","generation":"g","verdict":"malicious","signature":"Eicar","micros":5}],` +
		`"micros":9}` + "\n"
	if buf.String() != want {
		t.Errorf("line:\n%s\nwant:\n%s", &buf, want)
	}
	var back Record
	if err := json.Unmarshal(buf.Bytes(), &back); err != nil || !reflect.DeepEqual(back, rec) {
		t.Errorf("decoded %+v, %v; want %+v", back, err, rec)
	}
}

func TestRecordLineThatCannotBeEncoded(t *testing.T) {
	buf := bytes.NewBufferString("before\n")
	rec := Record{Seq: 3, Time: time.Date(10001, 1, 1, 0, 0, 0, 0, time.UTC)}
	err := rec.AppendLine(buf)
	if err == nil || !strings.Contains(err.Error(), "record 3") || buf.String() != "before\n" {
		t.Errorf("error %v, buffer %q", err, buf)
	}
}

func TestReasonNames(t *testing.T) {
	seen := make(map[string]bool)
	for r := range NumReasons {
		text, err := r.MarshalText()
		if err != nil || len(text) == 0 || seen[string(text)] {
			t.Errorf("reason %d is called %q, %v", r, text, err)
		}
		seen[string(text)] = true
		var back Reason
		if err := back.UnmarshalText(text); err != nil || back != r {
			t.Errorf("%q decodes to %d, %v; want %d", text, back, err, r)
		}
	}
	var r Reason
	if err := r.UnmarshalText([]byte("invalid")); err == nil {
		t.Error("a name that is no reason was decoded")
	}
	if NumReasons.String() != "invalid" {
		t.Errorf("NumReasons is called %q", NumReasons)
	}
}

func FuzzRecordDecode(f *testing.F) {
	f.Add([]byte(`{"seq":1,"reason":"clean","time":"2026-11-02T03:04:05Z"}`))
	f.Add([]byte(`{"reason":"no such thing"}`))
	f.Add([]byte(`{"scanners":[{}],"path":"\ud800"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var rec, again Record
		if json.Unmarshal(data, &rec) != nil {
			return
		}
		var buf bytes.Buffer
		if err := rec.AppendLine(&buf); err != nil {
			t.Fatalf("%+v was decoded but cannot be encoded: %v", rec, err)
		}
		line := buf.Bytes()
		if bytes.IndexByte(line, '\n') != len(line)-1 {
			t.Fatalf("not one line: %q", line)
		}
		if err := json.Unmarshal(line, &again); err != nil {
			t.Fatalf("%q does not decode: %v", line, err)
		}
	})
}
