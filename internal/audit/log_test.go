package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if how := os.Getenv(childVariable); how != "" {
		fmt.Fprintln(os.Stderr, "child:", child(os.Args[1], how))
		os.Exit(1)
	}
	// lumberjack starts one goroutine per record file that removes old files
	// and offers no way to end it.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("gopkg.in/natefinch/lumberjack%2ev2.(*Logger).millRun"))
}

// newTestLog returns a log of keep records in memory.
func newTestLog(t *testing.T, keep int) *Log {
	t.Helper()
	l, err := NewLog(Options{Keep: keep})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l
}

// subscribe returns a subscription that is closed with the test.
func subscribe(t *testing.T, l *Log, since uint64) *Subscription {
	t.Helper()
	s := l.Subscribe(since)
	t.Cleanup(s.Close)
	return s
}

func appendN(l *Log, n int) {
	for range n {
		l.Append(Record{Path: "/bin/true", Decision: "allow"})
	}
}

func wantNext(t *testing.T, s *Subscription, seq, lost uint64) {
	t.Helper()
	rec, gotLost, err := s.Next(t.Context())
	if err != nil || rec.Seq != seq || gotLost != lost {
		t.Fatalf("Next() = seq %d, lost %d, error %v; want seq %d, lost %d", rec.Seq, gotLost, err, seq, lost)
	}
}

func TestSubscribeSince(t *testing.T) {
	tests := []struct {
		name            string
		appended        int
		since           uint64
		wantSeq, wantLo uint64
	}{
		{"oldest of an empty log", 0, 0, 1, 0},
		{"oldest, nothing overwritten", 3, 0, 1, 0},
		{"oldest of a full ring", 4, 0, 1, 0},
		{"oldest after an overwrite", 10, 0, 7, 0},
		{"a kept one", 10, 8, 8, 0},
		{"the next one", 10, 11, 11, 0},
		{"one that is gone", 10, 3, 7, 4},
		{"one from before a restart", 10, 5000, 7, 0},
		{"from now", 10, FromNow, 11, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newTestLog(t, 4)
			appendN(l, tt.appended)
			s := subscribe(t, l, tt.since)
			if tt.wantSeq > uint64(tt.appended) {
				appendN(l, 1)
			}
			wantNext(t, s, tt.wantSeq, tt.wantLo)
		})
	}
}

func TestSlowSubscriberLosesTheOldest(t *testing.T) {
	l := newTestLog(t, 4)
	s, idle := subscribe(t, l, 0), l.Subscribe(0)
	appendN(l, 2)
	wantNext(t, s, 1, 0)
	appendN(l, 8)
	if got := s.Behind(); got != 9 {
		t.Errorf("Behind() = %d, want 9", got)
	}
	// s misses 2 to 6, and idle 1 to 6, before either has noticed.
	if st := l.Status(); st.LostToSubs != 11 || st.Subscribers != 2 {
		t.Errorf("Status() = %+v, want 11 lost to 2 subscribers", st)
	}
	wantNext(t, s, 7, 5)
	wantNext(t, s, 8, 0)
	idle.Close()
	idle.Close()
	if st := l.Status(); st.LostToSubs != 11 || st.Subscribers != 1 {
		t.Errorf("Status() after a close = %+v, want 11 lost and 1 subscriber", st)
	}
}

func TestNextWaitsForARecord(t *testing.T) {
	l := newTestLog(t, 4)
	var wg sync.WaitGroup
	for range 3 {
		s := subscribe(t, l, 0)
		wg.Go(func() {
			for seq := uint64(1); seq <= 4; seq++ {
				if rec, _, err := s.Next(t.Context()); err != nil || rec.Seq != seq {
					t.Errorf("Next() = seq %d, %v; want seq %d", rec.Seq, err, seq)
					return
				}
			}
		})
	}
	appendN(l, 4)
	wg.Wait()
}

func TestNextEnds(t *testing.T) {
	closeLog := func(l *Log, _ *Subscription, _ context.CancelFunc) { _ = l.Close(context.Background()) }
	closeSub := func(_ *Log, s *Subscription, _ context.CancelFunc) { s.Close() }
	cancelCtx := func(_ *Log, _ *Subscription, cancel context.CancelFunc) { cancel() }
	tests := []struct {
		name string
		end  func(*Log, *Subscription, context.CancelFunc)
		want error
	}{
		{"by the log", closeLog, ErrClosed},
		{"by the subscription", closeSub, ErrClosed},
		{"by the context", cancelCtx, context.Canceled},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newTestLog(t, 4)
			s := subscribe(t, l, FromNow)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			result := make(chan error)
			go func() {
				_, _, err := s.Next(ctx)
				result <- err
			}()
			tt.end(l, s, cancel)
			if err := <-result; !errors.Is(err, tt.want) {
				t.Errorf("Next() = %v, want %v", err, tt.want)
			}
		})
	}
}

func TestClosedLogIsReadToTheEnd(t *testing.T) {
	l := newTestLog(t, 4)
	s := subscribe(t, l, 0)
	appendN(l, 2)
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantNext(t, s, 1, 0)
	wantNext(t, s, 2, 0)
	if _, _, err := s.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Next() = %v, want ErrClosed", err)
	}
	appendN(l, 1) // late records harm nobody
}

func TestConcurrentAppendsAndReaders(t *testing.T) {
	const appenders, each = 4, 2000
	l := newTestLog(t, 64)
	var writers, readers sync.WaitGroup
	for range 3 {
		s := subscribe(t, l, 1)
		readers.Go(func() {
			var seen, last uint64
			for {
				rec, lost, err := s.Next(t.Context())
				if err != nil {
					break
				}
				if rec.Seq != last+lost+1 {
					t.Errorf("seq %d after %d with %d lost", rec.Seq, last, lost)
				}
				last = rec.Seq
				seen += lost + 1
			}
			if seen != appenders*each {
				t.Errorf("read or missed %d records, want %d", seen, appenders*each)
			}
		})
	}
	for range appenders {
		writers.Go(func() { appendN(l, each) })
	}
	writers.Wait()
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	readers.Wait()
}

func TestAppendDoesNotAllocate(t *testing.T) {
	l := newTestLog(t, 64)
	subscribe(t, l, 0) // stopped: never reads
	rec := Record{Path: "/bin/true"}
	if n := testing.AllocsPerRun(1000, func() { l.Append(rec) }); n != 0 {
		t.Errorf("Append allocates %v times", n)
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, subs := range []int{0, 10} {
		b.Run(fmt.Sprintf("stopped=%d", subs), func(b *testing.B) {
			l, err := NewLog(Options{})
			if err != nil {
				b.Fatal(err)
			}
			for range subs {
				defer l.Subscribe(0).Close()
			}
			rec := Record{Path: "/bin/true", Scanners: []Scanner{{Name: "hashes"}}}
			b.ReportAllocs()
			for b.Loop() {
				l.Append(rec)
			}
		})
	}
}
