package nri

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	validator "github.com/containerd/nri/plugins/default-validator/builtin"
	"google.golang.org/protobuf/proto"

	"github.com/containerd/nri/pkg/adaptation"

	"github.com/assay-project/assay/internal/announce"
)

func cloneContainer(c *api.Container) *api.Container {
	return proto.Clone(c).(*api.Container) //nolint:errcheck,forcetypeassert // by its own type
}

// connect starts a runtime and a plugin that is connected to it.
func connect(t *testing.T, agent Agent, options ...adaptation.Option) (*testRuntime, *Plugin) {
	t.Helper()
	dir := t.TempDir()
	r := startRuntime(t, dir, options...)
	p, _ := newPlugin(t, agent, socketIn(dir))
	run(t, p)
	r.isConnected(t, p)
	return r, p
}

// create sends a CreateContainer and returns the hooks that the plugin asks for.
func create(t *testing.T, r *testRuntime, c *api.Container) ([]*api.Hook, error) {
	t.Helper()
	reply, err := r.CreateContainer(t.Context(), &api.CreateContainerRequest{Pod: aPod, Container: cloneContainer(c)})
	return reply.GetAdjust().GetHooks().GetCreateRuntime(), err
}

func start(t *testing.T, r *testRuntime, c *api.Container) error {
	t.Helper()
	return r.StartContainer(t.Context(), &api.StartContainerRequest{Pod: aPod, Container: cloneContainer(c)})
}

// wantAnnouncement is what the agent is to hear of aContainer.
func wantAnnouncement() announce.Container {
	return announce.Container{
		ID: "c-1", Namespace: "pay-eu", PodLabels: map[string]string{"tier": "pci"}, Runtime: announce.Containerd,
		Name: "cart", Pod: "shop", PodUID: "uid-1", Image: "shop/cart:1", ImageDigest: "sha256:1",
	}
}

func TestHookIsInjected(t *testing.T) {
	r, p := connect(t, &testAgent{})
	hooks, err := create(t, r, created())
	if err != nil || len(hooks) != 1 {
		t.Fatalf("hooks %v, error %v", hooks, err)
	}
	want := &api.Hook{
		Path: "/usr/bin/env", Timeout: api.Int(40),
		Args: []string{"/usr/bin/env", "/opt/assay/assay-hook", "--runtime", "containerd", "createRuntime"},
	}
	if !proto.Equal(hooks[0], want) {
		t.Errorf("hook %v, want %v", hooks[0], want)
	}
	if got, ok := p.Known("c-1"); !ok || !reflect.DeepEqual(got, wantAnnouncement()) {
		t.Errorf("known: %+v, %v", got, ok)
	}
	if s := p.Status(); s.Hooked != 1 || s.Known != 1 {
		t.Errorf("status %+v", s)
	}
}

// TestHookIsNotInjected: where the base specification has it, where the container may
// run unguarded, and where it is exempt.
func TestHookIsNotInjected(t *testing.T) {
	agent := &testAgent{}
	r, p := connect(t, agent)
	for name, h := range map[string]*api.Hooks{
		"itself":   {CreateRuntime: []*api.Hook{{Path: "/usr/local/bin/assay-hook"}}},
		"prestart": {Prestart: []*api.Hook{{Path: "/usr/local/bin/assay-hook"}}},
		"by env":   {CreateRuntime: []*api.Hook{{Path: "/bin/other"}, {Path: "/usr/bin/env", Args: []string{"env", "/opt/assay-hook", "createRuntime"}}}},
	} {
		c := created()
		c.Hooks = h
		if hooks, err := create(t, r, c); err != nil || len(hooks) != 0 {
			t.Errorf("%s: hooks %v, error %v", name, hooks, err)
		}
	}
	for _, policy := range []Policy{{Closed: false}, {Exempt: true}, {Exempt: true, Closed: true}} {
		agent.policy = always(policy)
		if hooks, err := create(t, r, created()); err != nil || len(hooks) != 0 {
			t.Errorf("%+v: hooks %v, error %v", policy, hooks, err)
		}
	}
	if s := p.Status(); s.Hooked != 0 {
		t.Errorf("status %+v", s)
	}
}

// TestOtherHooksAreNotOurs: only the program itself counts.
func TestOtherHooksAreNotOurs(t *testing.T) {
	for _, h := range []*api.Hook{
		nil,
		{},
		{Path: "/bin/assay-hook-of-somebody"},
		{Path: "/bin/sh", Args: []string{"sh", "assay-hook"}},
		{Path: "/usr/bin/env", Args: []string{"env"}},
		{Path: "/usr/bin/env", Args: []string{"assay-hook", "x"}},
	} {
		if isHook(h) {
			t.Errorf("%v counts as the hook", h)
		}
	}
}

func TestNoHookToInject(t *testing.T) {
	agent := &testAgent{}
	r, p := connect(t, agent)
	p.opts.Hook = nil
	if _, err := create(t, r, created()); err == nil || !strings.Contains(err.Error(), "nri.hook") {
		t.Errorf("error %v, want one with a remedy", err)
	}
	agent.policy = always(Policy{})
	if _, err := create(t, r, created()); err != nil {
		t.Errorf("one that may run unguarded: %v", err)
	}
}

// TestValidatorRejectsHook: what a runtime does that is configured to refuse hooks.
func TestValidatorRejectsHook(t *testing.T) {
	cfg := &validator.DefaultValidatorConfig{Enable: true, RejectOCIHookAdjustment: true}
	r, _ := connect(t, &testAgent{}, adaptation.WithDefaultValidator(cfg))
	if _, err := create(t, r, created()); err == nil || !strings.Contains(err.Error(), "OCI hook injection") {
		t.Errorf("error %v", err)
	}
}

func TestStartIsAnnounced(t *testing.T) {
	agent := &testAgent{}
	r, p := connect(t, agent)
	if err := start(t, r, aContainer); err != nil {
		t.Fatal(err)
	}
	want := wantAnnouncement()
	want.PID, want.Rootfs, want.Source = 4711, "/", "nri:StartContainer"
	if got := agent.toldOf(); len(got) != 1 || !reflect.DeepEqual(got[0], want) {
		t.Errorf("announced %+v\nwant %+v", got, want)
	}
	if s := p.Status(); s.Refused+s.Open+s.Exempt != 0 {
		t.Errorf("status %+v", s)
	}
}

// TestStartFails: an error keeps a container from running if its policy says so.
func TestStartFails(t *testing.T) {
	no := &announce.Refusal{Message: "no such mount", Remedy: "mount it"}
	for name, c := range map[string]struct {
		announce func(context.Context, announce.Container) (announce.Guarded, error)
		want     string
	}{
		"refused": {func(context.Context, announce.Container) (announce.Guarded, error) { return announce.Guarded{}, no }, "no such mount (mount it)"},
		"panics":  {func(context.Context, announce.Container) (announce.Guarded, error) { panic("out of ideas") }, "out of ideas"},
	} {
		t.Run(name, func(t *testing.T) {
			agent := &testAgent{announce: c.announce}
			r, p := connect(t, agent)
			if err := start(t, r, aContainer); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			agent.policy = always(Policy{Tenant: "lab"})
			if err := start(t, r, aContainer); err != nil {
				t.Errorf("one that may run unguarded: %v", err)
			}
			agent.policy = always(Policy{Exempt: true})
			if err := start(t, r, aContainer); err != nil {
				t.Errorf("an exempt one: %v", err)
			}
			if s := p.Status(); s.Refused != 1 || s.Open != 1 || s.Exempt != 1 || s.Connections != 1 {
				t.Errorf("status %+v", s)
			}
			if n := len(agent.toldOf()); n != 2 {
				t.Errorf("announced %d times, want not the exempt one", n)
			}
		})
	}
}

// TestAgentHangs: the runtime is answered before it loses patience, and goes on with us.
func TestAgentHangs(t *testing.T) {
	patient(t, 1200*time.Millisecond)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	agent := &testAgent{
		// Not even the context's end ends it.
		announce: func(context.Context, announce.Container) (announce.Guarded, error) {
			<-release
			return announce.Guarded{}, errors.New("too late")
		},
		release: func(string) bool { <-release; return true },
	}
	r, p := connect(t, agent)
	if err := start(t, r, aContainer); err == nil || !strings.Contains(err.Error(), "plugin_request_timeout") {
		t.Errorf("error %v", err)
	}
	agent.policy = always(Policy{})
	if err := start(t, r, aContainer); err != nil {
		t.Errorf("one that may run unguarded: %v", err)
	}
	if err := r.RemoveContainer(t.Context(), &api.RemoveContainerRequest{Pod: aPod, Container: aContainer}); err != nil {
		t.Errorf("removal: %v", err)
	}
	if _, err := create(t, r, created()); err != nil {
		t.Errorf("creation: %v", err)
	}
	if s := p.Status(); !s.Connected || s.Connections != 1 || s.Refused != 1 || s.Open != 1 {
		t.Errorf("status %+v", s)
	}
}

// TestPolicyPanics: what is not known must not run.
func TestPolicyPanics(t *testing.T) {
	agent := &testAgent{policy: func(announce.Container) Policy { panic("no policy") }}
	r, p := connect(t, agent)
	if _, err := create(t, r, created()); err == nil || !strings.Contains(err.Error(), "no policy") {
		t.Errorf("creation: %v", err)
	}
	if err := start(t, r, aContainer); err == nil || !strings.Contains(err.Error(), "no policy") {
		t.Errorf("start: %v", err)
	}
	if s := p.Status(); s.Panics != 2 || !s.Connected {
		t.Errorf("status %+v", s)
	}
}

func TestRemoval(t *testing.T) {
	agent := &testAgent{}
	r, p := connect(t, agent)
	second := created()
	second.Id = "c-2"
	for _, c := range []*api.Container{created(), second} {
		if _, err := create(t, r, c); err != nil {
			t.Fatal(err)
		}
	}
	// containerd says so little when it undoes a creation.
	if err := r.RemoveContainer(t.Context(), &api.RemoveContainerRequest{Container: &api.Container{Id: "c-1"}}); err != nil {
		t.Error(err)
	}
	if _, err := r.StopContainer(t.Context(), &api.StopContainerRequest{Container: &api.Container{Id: "c-1"}}); err != nil {
		t.Errorf("its end, after its removal: %v", err)
	}
	if _, ok := p.Known("c-1"); ok {
		t.Error("a removed container is known")
	}
	if err := r.RemovePodSandbox(t.Context(), &api.RemovePodSandboxRequest{Pod: aPod}); err != nil {
		t.Error(err)
	}
	if _, ok := p.Known("c-2"); ok {
		t.Error("a removed pod's container is known")
	}
	if got := agent.releasedOnes(); !slices.Equal(got, []string{"c-1"}) {
		t.Errorf("released %q", got)
	}
}

// TestStartOutOfOrder: twice, and before its creation.
func TestStartOutOfOrder(t *testing.T) {
	agent := &testAgent{}
	r, p := connect(t, agent)
	for range 2 {
		if err := start(t, r, aContainer); err != nil {
			t.Error(err)
		}
	}
	if _, err := create(t, r, created()); err != nil {
		t.Error(err)
	}
	if s := p.Status(); len(agent.toldOf()) != 2 || s.Refused != 0 {
		t.Errorf("announced %d times, status %+v", len(agent.toldOf()), s)
	}
}

// TestMessagesLack: a message that says less than it has to is an error for who must not
// run unguarded, and no reason to keep others from running.
func TestMessagesLack(t *testing.T) {
	agent := &testAgent{}
	p, _ := newPlugin(t, agent, "")
	s := &session{plugin: p, agent: t.Context(), life: t.Context()}
	s.bound.Store(int64(time.Minute))
	for name, m := range map[string]struct {
		pod       *api.PodSandbox
		container *api.Container
	}{
		"nothing":      {nil, nil},
		"no pod":       {nil, aContainer},
		"no namespace": {&api.PodSandbox{Id: "pod-1"}, aContainer},
		"no container": {aPod, nil},
		"no id":        {aPod, &api.Container{Pid: 4711}},
		"no process":   {aPod, created()},
		"no usable id": {aPod, &api.Container{Id: "../c", Pid: 4711}},
	} {
		t.Run(name, func(t *testing.T) {
			agent.policy = nil
			_, _, err := s.CreateContainer(t.Context(), m.pod, m.container)
			if complete := m.pod.GetNamespace() != "" && m.container.GetId() != ""; (err == nil) != complete {
				t.Errorf("creation: %v", err)
			}
			p.expected.forget(m.container.GetId())
			if err := s.StartContainer(t.Context(), m.pod, m.container); err == nil {
				t.Error("it starts")
			}
			want := 1
			if err != nil {
				want = 2
			}
			if said := agent.saidUnguarded(); len(said) != want {
				t.Errorf("the agent heard %q, want %d of them", said, want)
			}
			agent.policy = always(Policy{})
			if _, _, err := s.CreateContainer(t.Context(), m.pod, m.container); err != nil {
				t.Errorf("creation of one that may run unguarded: %v", err)
			}
			if err := s.StartContainer(t.Context(), m.pod, m.container); err != nil {
				t.Errorf("start of one that may run unguarded: %v", err)
			}
			if said := agent.saidUnguarded(); len(said) != 1 {
				t.Errorf("of one that may run unguarded the agent heard %q", said)
			}
			if _, err := s.Synchronize(t.Context(), []*api.PodSandbox{m.pod}, []*api.Container{m.container}); err != nil {
				t.Error(err)
			}
			if _, err := s.StopContainer(t.Context(), m.pod, m.container); err != nil {
				t.Error(err)
			}
			if err := s.RemoveContainer(t.Context(), m.pod, m.container); err != nil {
				t.Error(err)
			}
			if err := s.RemovePodSandbox(t.Context(), m.pod); err != nil {
				t.Error(err)
			}
			p.late.stop()
		})
	}
	if n := p.Status().Panics; n != 0 {
		t.Errorf("%d panics", n)
	}
}

// TestStartKnowsFromCreation: a start without its pod is completed from the creation.
func TestStartKnowsFromCreation(t *testing.T) {
	agent := &testAgent{}
	r, _ := connect(t, agent)
	if _, err := create(t, r, created()); err != nil {
		t.Fatal(err)
	}
	if err := r.StartContainer(t.Context(), &api.StartContainerRequest{Container: aContainer}); err != nil {
		t.Fatal(err)
	}
	if got := agent.toldOf(); len(got) != 1 || got[0].Namespace != "pay-eu" || got[0].PID != 4711 {
		t.Errorf("announced %+v", got)
	}
}

// TestProcessIsNotTold: a runtime that does not tell the process has the hook for it.
func TestProcessIsNotTold(t *testing.T) {
	agent := &testAgent{}
	r, _ := connect(t, agent)
	c := created()
	if err := start(t, r, c); err == nil {
		t.Error("it starts without a hook")
	}
	c.Hooks = &api.Hooks{CreateRuntime: []*api.Hook{{Path: "/opt/assay-hook"}}}
	if err := start(t, r, c); err != nil {
		t.Error(err)
	}
	if got := agent.toldOf(); len(got) != 0 {
		t.Errorf("announced %+v", got)
	}
}

// TestPodLabels: none is not the same as not told, and they are not the message's own.
func TestPodLabels(t *testing.T) {
	p, _ := newPlugin(t, &testAgent{}, "")
	if c := p.announcement(&api.PodSandbox{Namespace: "web"}, aContainer); c.PodLabels == nil || len(c.PodLabels) != 0 {
		t.Errorf("no labels: %v", c.PodLabels)
	}
	if c := p.announcement(nil, aContainer); c.PodLabels != nil {
		t.Errorf("no pod: %v", c.PodLabels)
	}
	c := p.announcement(aPod, aContainer)
	c.PodLabels["tier"] = "changed"
	if !maps.Equal(aPod.Labels, map[string]string{"tier": "pci"}) {
		t.Error("the message's labels are shared")
	}
}

// FuzzAnnouncement: no message makes an announcement of what it does not say, nor a panic.
func FuzzAnnouncement(f *testing.F) {
	for _, m := range []proto.Message{aPod, &api.PodSandbox{}} {
		pod, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		container, err := proto.Marshal(aContainer)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(pod, container)
		f.Add(container, pod)
	}
	f.Fuzz(func(t *testing.T, podBytes, containerBytes []byte) {
		pod, container := &api.PodSandbox{}, &api.Container{}
		if proto.Unmarshal(podBytes, pod) != nil || proto.Unmarshal(containerBytes, container) != nil {
			return
		}
		p := New(Options{Agent: &testAgent{}, Logger: (&logBook{}).logger()})
		c := p.announcement(pod, container)
		if c.PID != 0 || c.Late || c.Namespace != pod.GetNamespace() || c.ID != container.GetId() || (c.PodLabels == nil) != (pod.GetNamespace() == "") {
			t.Errorf("%+v of %v, %v", c, pod, container)
		}
		s := &session{plugin: p, agent: t.Context(), life: t.Context()}
		s.bound.Store(int64(time.Minute))
		adjustment, _, err := s.CreateContainer(t.Context(), pod, container)
		if err == nil && len(adjustment.GetHooks().GetCreateRuntime()) == 0 && !p.hooked(container) {
			t.Error("a container that must not run unguarded has no hook")
		}
		if s.StartContainer(t.Context(), pod, container) == nil && (c.ID == "" || c.Namespace == "") {
			t.Error("it starts, and nobody knows what it is")
		}
	})
}
