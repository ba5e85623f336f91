package tenant_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/assay-project/assay/internal/tenant"
)

// docs is where users read.
const docs = "../../docs"

func readDoc(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(docs, "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestExampleIsTheDefault: assay.yaml writes the built-in default out, and it
// mentions every key, set or commented out.
func TestExampleIsTheDefault(t *testing.T) {
	t.Parallel()
	file := filepath.Join(docs, "assay.yaml")
	c, err := tenant.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, c, tenant.Default())
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for path := range settings(t, parse(t, everyKey)) {
		key := path[strings.LastIndex(path, ".")+1:]
		if !regexp.MustCompile(`\b` + strings.TrimSuffix(key, "[]") + `:`).Match(data) {
			t.Errorf("assay.yaml does not mention %s", path)
		}
	}
}

// TestDocumentedFiles parses every block that the reference calls complete.
func TestDocumentedFiles(t *testing.T) {
	t.Parallel()
	blocks := regexp.MustCompile("(?ms)^```yaml complete\n(.*?)^```$").FindAllStringSubmatch(readDoc(t), -1)
	if len(blocks) != strings.Count(readDoc(t), "```yaml") || len(blocks) < 3 {
		t.Errorf("%d complete blocks: every yaml block should be one", len(blocks))
	}
	for _, block := range blocks {
		parse(t, block[1])
	}
}

// TestDocumentedKeys holds the tables of the reference against the code: a row
// for each key there is and none besides, with the default that is applied.
func TestDocumentedKeys(t *testing.T) {
	t.Parallel()
	rows := make(map[string]string) // key -> default
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`|]+)` \\| [^|]+ \\| ([^|]+) \\| [^|]+ \\|$").FindAllStringSubmatch(readDoc(t), -1) {
		rows[row[1]] = row[2]
	}
	every := settings(t, parse(t, everyKey))
	for path := range every {
		if _, ok := rows[path]; !ok {
			t.Errorf("%s is not documented", path)
		}
	}
	for path := range rows {
		if _, ok := every[path]; !ok {
			t.Errorf("%s is documented, but there is no such key", path)
		}
	}
	defaults := settings(t, parse(t, `
scanners: [{name: c, clamd: {address: "unix:/c"}}, {name: h, hashlist: {}}]
records: {file: /r}
`))
	for path, want := range defaults {
		got := rows[path]
		if strings.HasPrefix(got, "`") && got != "`"+want+"`" {
			t.Errorf("the default of %s is documented as %s, and is %s", path, got, want)
		}
	}
	for path := range every {
		required := regexp.MustCompile(`(name|address|file|\.scanners|namespaces\[\]\.labels)$`).MatchString(path)
		if required != (rows[path] == "required") {
			t.Errorf("the default of %s is documented as %s", path, rows[path])
		}
	}
}

// settings returns the effective configuration as the reference writes it: the
// path of each key, and its value if that is a scalar or a list of them.
func settings(t *testing.T, c *tenant.Config) map[string]string {
	t.Helper()
	data, err := json.Marshal(c.Effective())
	if err != nil {
		t.Fatal(err)
	}
	var root map[string]any
	if err := json.Unmarshal(data, &root); err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for key, value := range root {
		flatten(out, key, value)
	}
	// The reference explains these in the row of their only key or of their rule.
	for path := range out {
		if regexp.MustCompile(`\.(clamd|hashlist|match|exclude|decide\.quorum)$`).MatchString(path) {
			delete(out, path)
		}
	}
	return out
}

// labels are the mappings whose keys are no settings.
var labels = regexp.MustCompile(`(namespaceLabels|podLabels|\.labels)$`)

func flatten(out map[string]string, path string, value any) {
	out[path] = ""
	switch v := value.(type) {
	case map[string]any:
		if labels.MatchString(path) {
			return // whoever writes the file chooses the keys
		}
		for key, value := range v {
			flatten(out, path+"."+key, value)
		}
	case []any:
		words := make([]string, len(v))
		for i, item := range v {
			words[i] = fmt.Sprint(item)
			if fields, ok := item.(map[string]any); ok {
				for key, value := range fields {
					flatten(out, path+"[]."+key, value)
				}
			}
		}
		out[path] = "[" + strings.Join(words, ", ") + "]"
	case float64:
		out[path] = fmt.Sprint(v)
		if mib := int64(v) >> 20; mib > 0 {
			out[path] = fmt.Sprintf("%dMiB", mib)
		}
	default:
		out[path] = fmt.Sprint(v)
	}
}
