package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/assay-project/assay/internal/guard"
	"github.com/assay-project/assay/internal/layer"
	"github.com/assay-project/assay/internal/lease"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/internal/verdict"
	"github.com/assay-project/assay/internal/verdict/store"
)

// hostRoot is where the agent sees the host's files.
const hostRoot = "/"

// memory is what the agent remembers verdicts with.
type memory struct {
	guard.Memory
	storage  *layer.ContainersStorage
	store    *store.Store
	storeErr error // why there is no store
}

// openMemory makes the cache and fills it from the store. Without a store the agent
// works, and says so.
func openMemory(ctx context.Context, cfg *tenant.Config, maxMarks, readers int, log *slog.Logger) (m *memory, err error) {
	m = &memory{Memory: guard.Memory{
		Cache: verdict.New(verdict.Options{MaxBytes: cfg.Cache.Memory, Lanes: readers}), MaxMarks: maxMarks,
	}}
	defer func() {
		if err != nil {
			m.close(context.WithoutCancel(ctx), log)
		}
	}()
	if m.Host, err = layer.OpenHost(hostRoot); err != nil {
		return nil, err
	}
	if m.Clock, err = layer.NewClock(); err != nil {
		return nil, err
	}
	if m.Leases, err = lease.NewHolder(); err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	m.storage = layer.NewContainersStorage(m.Host)
	m.Resolvers = []layer.Resolver{m.storage, layer.NewDocker(m.Host)}
	if cfg.Cache.Disk > 0 {
		m.openStore(cfg, log)
	}
	return m, nil
}

func (m *memory) openStore(cfg *tenant.Config, log *slog.Logger) {
	m.store, m.storeErr = store.Open(filepath.Join(cfg.State, "verdicts"), m.Cache, store.Options{MaxBytes: cfg.Cache.Disk})
	if m.storeErr != nil {
		log.Error("verdicts will not survive a restart", "error", m.storeErr)
		return
	}
	m.Cache.Attach(m.store)
	st := m.store.Status()
	if st.Damage != nil {
		log.Warn("the verdict store was damaged; what verified is used", "error", st.Damage)
	}
	if st.Err != nil {
		log.Warn("new verdicts will not survive a restart", "error", st.Err)
	}
	log.Info("verdicts restored", "verdicts", st.Restored, "file", st.File, "took", st.LoadTime)
}

// closeStore stores what there is to store. It may wait for a disk; what is learned
// from then on is not stored. Closing twice is harmless.
func (m *memory) closeStore(ctx context.Context, log *slog.Logger) {
	if m.store == nil {
		return
	}
	m.Cache.Attach(nil)
	if err := m.store.Close(ctx); err != nil {
		log.Error("the last verdicts could not be stored", "error", err)
	}
}

// close gives everything up. The guard no longer uses it.
func (m *memory) close(ctx context.Context, log *slog.Logger) {
	m.closeStore(ctx, log)
	if m.Leases != nil {
		m.Leases.Close()
	}
	if m.Clock != nil {
		m.Clock.Close()
	}
	if m.Host != nil {
		if err := m.Host.Close(); err != nil {
			log.Warn("close the host's tree", "error", err)
		}
	}
}
