package cri

import (
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// tenants is a configuration with a strict tenant for pay-*, one that only audits for
// dev, and by trusted label, an exempt namespace, and the default tenant, which is strict.
func tenants(t *testing.T, more string) string {
	t.Helper()
	return harness.HashScanner(suite.Image(t).Hashes) +
		"exempt: [{namespaces: [" + AgentNamespace + "]}]\n" + more +
		"tenants:\n" +
		harness.Tenant("payments", `{namespaces: ["pay-*"]}`, "hashes") +
		harness.Tenant("dev", "{namespaces: [dev]}", "hashes", "mode: audit") +
		harness.Tenant("default", "{}", "hashes")
}

// wantThrough fails t unless reads() was let through all of it.
func wantAllRead(t *testing.T, what string, r harness.Result) {
	t.Helper()
	wantRead(t, what, r, harness.BadFile+": 68 bytes", harness.CleanFile+": 13 bytes")
}

// TestTenants: the namespace of the pod says whose policy holds, the default tenant's if
// no other; an exempt one has no gate.
func TestTenants(t *testing.T) {
	node, agent := StartGated(t, suite, Options{}, tenants(t, ""))
	for _, tt := range []struct {
		namespace, tenant string
		want              func(*testing.T, string, harness.Result)
	}{
		{"pay-eu", "payments", wantGated},
		{"dev", "dev", wantAllRead},
		{"nobodys", "default", wantGated},
	} {
		pod := node.RunPod(t, PodSpec{Namespace: tt.namespace})
		c := pod.Start(t, Spec{Args: reads()})
		tt.want(t, tt.namespace, c.Wait(t))
		r := agent.AwaitRecord(t, "the bad file in "+tt.namespace, func(r harness.Record) bool {
			return r.Container.ID == c.ID() && r.Path == harness.BadFile
		})
		if r.Tenant != tt.tenant || r.Container.Namespace != tt.namespace {
			t.Errorf("a pod in %s: the record has namespace %q, tenant %s, want %s", tt.namespace, r.Container.Namespace, r.Tenant, tt.tenant)
		}
	}
	c := node.RunPod(t, PodSpec{Namespace: AgentNamespace}).Start(t, idle())
	wantAllRead(t, "an exempt namespace", c.Exec(t, reads()...))
	if Guards(t, agent, c.ID()) {
		t.Error("the agent guards a container of an exempt namespace")
	}
}

// TestPodLabels: a pod's label chooses a tenant if the configuration trusts it, and not
// otherwise; so do labels of its namespace.
func TestPodLabels(t *testing.T) {
	config := harness.HashScanner(suite.Image(t).Hashes) +
		"trust: {podLabels: [tier]}\nnamespaces: [{name: lab, labels: {purpose: tests}}]\ntenants:\n" +
		harness.Tenant("trusted", "{podLabels: {tier: free}}", "hashes", "mode: audit") +
		harness.Tenant("lab", "{namespaceLabels: {purpose: tests}}", "hashes", "mode: audit") +
		harness.Tenant("default", "{}", "hashes")
	node, _ := StartGated(t, suite, Options{}, config)
	run := func(s PodSpec) harness.Result { return node.RunPod(t, s).Run(t, Spec{Args: reads()}) }

	wantAllRead(t, "a trusted label", run(PodSpec{Labels: map[string]string{"tier": "free"}}))
	wantGated(t, "another value of it", run(PodSpec{Labels: map[string]string{"tier": "pci"}}))
	wantGated(t, "another label", run(PodSpec{Labels: map[string]string{"app": "free"}}))
	wantGated(t, "an annotation of that name", run(PodSpec{Annotations: map[string]string{"tier": "free"}}))
	wantAllRead(t, "a label of the namespace", run(PodSpec{Namespace: "lab"}))
	wantGated(t, "the pod's own label of that name", run(PodSpec{Labels: map[string]string{"purpose": "tests"}}))
}

// disguises returns keys and values by which a pod may try to be somebody else: those that
// containerd, CRI-O, the kubelet, NRI's validator and this project know.
func disguises(namespace string) map[string]string {
	return map[string]string{
		"io.kubernetes.cri.sandbox-namespace":           namespace,
		"io.kubernetes.cri.sandbox-name":                "assay",
		"io.kubernetes.cri.sandbox-id":                  "0000",
		"io.kubernetes.cri.container-type":              "sandbox",
		"io.kubernetes.cri.container-name":              "assayd",
		"io.kubernetes.cri-o.Namespace":                 namespace,
		"io.kubernetes.cri-o.ContainerType":             "sandbox",
		"io.kubernetes.pod.namespace":                   namespace,
		"io.kubernetes.container.name":                  "POD",
		"io.containerd.containerd.namespace":            namespace,
		"io.cri-containerd.kind":                        "sandbox",
		"namespace":                                     namespace,
		"assay.dev/exempt":                              "true",
		"assay.dev/tenant":                              "dev",
		"tenant":                                        "dev",
		"tier":                                          "free",
		Tolerate:                                        "true",
		"required-plugins.noderesource.dev":             "[]",
		"required-plugins.noderesource.dev/container.c": "[]",
	}
}

// TestDisguise: nothing that whoever makes a pod can write picks a tenant or an exemption,
// even where it reaches the OCI runtime, and the hook: not while there is an agent, and
// not while there is none.
func TestDisguise(t *testing.T) {
	node, agent := StartInstalled(t, suite, Options{PassThrough: []string{"*", "*/*"}}, tenants(t, "trust: {podLabels: [tier2]}\n"))
	observer := node.Observe(t)
	specs := map[string]PodSpec{}
	for _, namespace := range []string{AgentNamespace, "dev"} {
		specs["annotations of "+namespace] = PodSpec{Annotations: disguises(namespace)}
		specs["labels of "+namespace] = PodSpec{Labels: disguises(namespace)}
		specs["the name "+namespace] = PodSpec{Name: namespace}
	}
	for what, spec := range specs {
		spec.Namespace = "pay-eu"
		pod := node.RunPod(t, spec)
		c := pod.Start(t, Spec{Name: "assayd", Args: reads(), Annotations: spec.Annotations, Labels: spec.Labels})
		wantGated(t, what, c.Wait(t))
		if r := agent.AwaitRecord(t, "the denied open", denied(c)); r.Tenant != "payments" || r.Container.Namespace != "pay-eu" {
			t.Errorf("%s: the record names namespace %s, tenant %s", what, r.Container.Namespace, r.Tenant)
		}
	}
	agent.Kill(t)
	for what, spec := range specs {
		spec.Namespace, spec.Name = "pay-eu", spec.Name+"-again"
		c, err := node.RunPod(t, spec).Try(t, Spec{Args: reads(), Annotations: spec.Annotations, Labels: spec.Labels})
		if err == nil {
			t.Errorf("%s: it starts without an agent: %s", what, c.Wait(t))
		}
	}
	wantNothingThrough(t, "all of it", observer)
}
