package main

import (
	"context"
	"fmt"
	"time"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/containerd"
	"github.com/assay-project/assay/internal/layer"
)

// openContainerd makes the client of containerd, which connects when it is first asked.
func (a *agent) openContainerd() (err error) {
	a.containerd, err = containerd.New(containerd.Options{
		Socket: a.config.Containerd.Socket, Namespace: a.config.Containerd.Namespace,
	})
	if err != nil {
		return err
	}
	a.memory.Containerd = layer.NewContainerd(a.memory.Host, a.containerd)
	return nil
}

func (a *agent) closeContainerd() {
	if err := a.containerd.Close(); err != nil {
		a.log.Warn("the client of containerd did not close", "error", err)
	}
}

// complete adds what the runtime's plugin or containerd know of a container and its
// announcement lacks.
func (a *agent) complete(ctx context.Context, c *announce.Container) error {
	if a.plugin != nil {
		if known, ok := a.plugin.Known(c.ID); ok {
			fill(c, &known)
		}
	}
	if c.Runtime != announce.Containerd || c.PodLabels != nil && c.ImageDigest != "" {
		return nil
	}
	a.mu.Lock()
	needed := c.PodLabels == nil && a.config.AsksPodLabels()
	a.mu.Unlock()
	if !needed {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, namesPatience)
		defer cancel()
	}
	d, err := a.containerd.Describe(ctx, c.ID)
	if err != nil && needed {
		return fmt.Errorf("the configuration selects tenants by pod labels, and these are not known: %w", err)
	}
	if err != nil {
		a.log.Warn("containerd does not tell of a container: records will lack what it knows", "container", c.ID, "error", err)
		return nil
	}
	fill(c, &announce.Container{
		Namespace: d.Namespace, PodLabels: d.PodLabels, Name: d.Name, Pod: d.Pod, PodUID: d.PodUID,
		Image: d.Image, ImageDigest: d.ImageDigest,
	})
	return nil
}

// namesPatience is how long a container that starts waits for what only names it in
// records.
const namesPatience = 300 * time.Millisecond

// fill gives c what it lacks of known.
func fill(c, known *announce.Container) {
	for _, f := range []struct{ to, from *string }{
		{&c.Namespace, &known.Namespace},
		{&c.Name, &known.Name},
		{&c.Pod, &known.Pod},
		{&c.PodUID, &known.PodUID},
		{&c.Image, &known.Image},
		{&c.ImageDigest, &known.ImageDigest},
	} {
		if *f.to == "" {
			*f.to = *f.from
		}
	}
	if c.PodLabels == nil {
		c.PodLabels = known.PodLabels
	}
	if c.Runtime == "" {
		c.Runtime = known.Runtime
	}
}
