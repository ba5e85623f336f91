package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	tallyMagic   = 0x4153_5341_5954_414c // "ASSAYTAL"
	tallyVersion = 2
	// maxSeq bounds what a page may claim: the numbers that every reader of JSON
	// knows exactly. At a million records a second it takes 285 years.
	maxSeq = 1 << 53
)

// Why a tally cannot be kept.
var (
	errTallyDisk   = errors.New("not on a file system in memory, where a count could wait for a disk: use tmpfs")
	errTallyInUse  = errors.New("another process counts there")
	errTallyUnsafe = errors.New("others than this user could have written it: remove it")
)

// A tally is what survives this process of the log: how many records there were
// and how many of them are settled, in one page of a file in memory. Counting is
// a store to memory: no system call, no lock, no allocation. What a killed
// process has counted, the next one finds: the difference was lost with it.
//
// A record is counted before it is put into the ring, and settled after it was
// written, so that the loss is never understated: the record in the writer's
// hand may be both in the file and counted as lost.
type tally struct {
	file  *os.File // holds the lock
	page  *tallyPage
	unmap func() error
}

// openTally takes the tally at path over from the last process, or begins a new
// one, and makes the directory (0755) if there is none. It says in the log what
// it found. It fails if nothing can be counted there; the log does without.
func openTally(path string, logger *slog.Logger) (*tally, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	t := &tally{file: f}
	if err := t.takeOver(logger); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return t, nil
}

func (t *tally) takeOver(logger *slog.Logger) error {
	info, err := checkTally(t.file)
	if err != nil {
		return err
	}
	fresh := info.Size() == 0
	if info.Size() != tallySize {
		if err := clearTally(t.file); err != nil {
			return err
		}
	}
	if t.page, t.unmap, err = mapTally(int(t.file.Fd())); err != nil {
		return err
	}
	wrong := t.page.nonsense()
	switch {
	case fresh:
		t.page.begin(time.Now())
		logger.Info("records are numbered from 1", "tally", t.file.Name())
	case wrong != "":
		t.page.begin(time.Now())
		logger.Warn("records are numbered from 1, and those lost before are unknown: the tally is not usable",
			"tally", t.file.Name(), "bytes", info.Size(), "reason", wrong)
	default:
		t.notice(logger)
	}
	return nil
}

// checkTally locks the file and makes sure that counting there is safe.
func checkTally(f *os.File) (fs.FileInfo, error) {
	fd := int(f.Fd())
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errNotRegular
	}
	// A second name could be that of any file of ours, in a directory of others.
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) != os.Geteuid() || st.Nlink != 1 || info.Mode()&0o022 != 0 {
		return nil, errTallyUnsafe
	}
	var mount syscall.Statfs_t
	if err := syscall.Fstatfs(fd, &mount); err != nil {
		return nil, err
	}
	const tmpfs, ramfs = 0x01021994, 0x858458f6
	if kind := uint32(mount.Type); kind != tmpfs && kind != ramfs { //nolint:gosec // 32 bits, sign-extended by some architectures
		return nil, errTallyDisk
	}
	if err := syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errTallyInUse
		}
		return nil, err
	}
	// The process that held the lock may have changed it since.
	return f.Stat()
}

// clearTally makes the file one page of zeros. They are written, because a hole
// that tmpfs has no room to fill later would kill the process at a store.
func clearTally(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt(make([]byte, tallySize), 0)
	return err
}

// nonsense says why a page cannot be believed, or returns "".
func (p *tallyPage) nonsense() string {
	appended, settled, noticed := p.appended.Load(), p.settled.Load(), p.noticed.Load()
	answered, told := p.answered.Load(), p.told.Load()
	switch {
	case p.magic != tallyMagic:
		return "it is not a tally"
	case p.version != tallyVersion:
		return fmt.Sprintf("it has version %d, not %d", p.version, tallyVersion)
	case appended > maxSeq, settled > appended, told > answered, noticed > appended-settled+answered-told:
		return fmt.Sprintf("its counts do not go together: %d appended, %d settled, %d answered, %d told, %d known to be lost",
			appended, settled, answered, told, noticed)
	}
	return ""
}

// begin makes the page that of a log without records. The magic comes last: a
// page that was not finished is not a tally.
func (p *tallyPage) begin(now time.Time) {
	p.magic = 0
	p.appended.Store(0)
	p.settled.Store(0)
	p.noticed.Store(0)
	p.answered.Store(0)
	p.told.Store(0)
	p.version, p.began = tallyVersion, now.UnixNano()
	p.magic = tallyMagic
}

// notice says how many records were lost with the last process.
func (t *tally) notice(logger *slog.Logger) {
	lost := t.lost()
	if last := lost - t.page.noticed.Load(); last > 0 {
		logger.Warn("records were lost with the last process: it ended before they were in the record file",
			"records", last, "all", lost, "since", time.Unix(0, t.page.began))
	}
	t.page.noticed.Store(lost)
}

// lost returns how many records are not settled. Before the first record of a
// process these are the ones that were lost with all that came before it.
// So are those that were announced and never came.
func (t *tally) lost() uint64 {
	return t.page.appended.Load() - t.page.settled.Load() + t.page.answered.Load() - t.page.told.Load()
}

// announce counts an event that is about to be answered.
func (t *tally) announce() {
	if t != nil {
		t.page.answered.Add(1)
	}
}

// keepPromise counts an event that was announced and has its record.
func (t *tally) keepPromise() {
	if t != nil {
		t.page.told.Add(1)
	}
}

// last returns the sequence number of the last record, 0 if there was none.
func (t *tally) last() uint64 {
	if t == nil {
		return 0
	}
	return t.page.appended.Load()
}

// append counts a record with the next sequence number. The caller serializes.
func (t *tally) append(seq uint64) {
	if t != nil {
		t.page.appended.Store(seq)
	}
}

// settle counts n records as settled.
func (t *tally) settle(n uint64) {
	if t != nil {
		t.page.settled.Add(n)
	}
}

// close lets the next process take over. Nobody may count any more.
func (t *tally) close() error {
	return errors.Join(t.unmap(), t.file.Close())
}
