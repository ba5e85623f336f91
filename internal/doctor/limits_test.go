package doctor

import (
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"testing"
)

func TestGroupLimit(t *testing.T) {
	for _, tt := range []struct {
		value               string
		containers, tenants int
		status              Status
		remedy              string
	}{
		{"126", 110, 1, OK, ""},
		{"125", 110, 1, Warn, "max_user_groups=256"},
		{"128", 500, 1, Warn, "max_user_groups=1024"},
		{"128", 110, 127, OK, ""},
		{"128", 110, 128, Fail, "max_user_groups=256"},
		{"many", 110, 1, Unknown, "sysctl fs.fanotify.max_user_groups"},
	} {
		t.Run(fmt.Sprintf("%s groups, %d containers, %d tenants", tt.value, tt.containers, tt.tenants), func(t *testing.T) {
			n := fakeNode(t)
			write(t, filepath.Join(n.proc, "sys/fs/fanotify/max_user_groups"), tt.value+"\n")
			want(t, n.groupLimit(tt.containers, tt.tenants, true), tt.status, "", tt.remedy)
			before := n.groupLimit(tt.containers, tt.tenants, false)
			want(t, before, tt.status, "", tt.remedy)
			if promised := strings.Contains(before.Remedy, "start the agent"); promised != (tt.status == Warn || tt.status == Fail) {
				t.Errorf("without an agent the remedy is %q", before.Remedy)
			}
		})
	}
}

func TestFileLimit(t *testing.T) {
	const manyContainers = 2 * (filesAtRest + 100*filesPerContainer)
	const manyTenants = 2 * 10 * filesPerTenant
	for name, tt := range map[string]struct {
		have                uint64
		containers, tenants int
		status              Status
		remedy              string
	}{
		"unlimited":            {math.MaxUint64, 1e6, 1, OK, ""},
		"many containers":      {manyContainers, 100, 1, OK, ""},
		"many containers, not": {manyContainers - 1, 100, 1, Warn, "LimitNOFILE=2048"},
		"many tenants":         {manyTenants, 1, 10, OK, ""},
		"many tenants, not":    {manyTenants - 1, 1, 10, Warn, "LimitNOFILE=8192"},
		"not known":            {0, 1, 1, Unknown, "root"},
	} {
		t.Run(name, func(t *testing.T) {
			want(t, fileLimit(&process{files: tt.have}, tt.containers, tt.tenants), tt.status, "", tt.remedy)
		})
	}
}

func TestExpectedContainers(t *testing.T) {
	for name, tt := range map[string]struct {
		asked int
		agent *agentReport
		want  int
	}{
		"default":               {0, nil, DefaultContainers},
		"asked":                 {7, nil, 7},
		"asked, agent has more": {7, &agentReport{containers: 9}, 7},
		"agent has few":         {0, &agentReport{containers: 9}, DefaultContainers},
		"agent has many":        {0, &agentReport{containers: 900}, 900},
	} {
		t.Run(name, func(t *testing.T) {
			if got := expectedContainers(&Options{Containers: tt.asked}, tt.agent); got != tt.want {
				t.Errorf("expects %d containers, want %d", got, tt.want)
			}
		})
	}
}
