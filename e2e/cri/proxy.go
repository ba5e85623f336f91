package cri

import (
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// A Proxy is a unix socket in between: what goes through it can be looked at, held up
// and cut off.
type Proxy struct {
	Socket string

	target   string
	listener net.Listener
	serving  sync.WaitGroup

	mu     sync.Mutex
	look   func(Chunk)
	gate   chan struct{} // closed: chunks pass
	conns  map[net.Conn]bool
	chunks int
}

// A Chunk is some bytes on their way.
type Chunk struct {
	ToTarget bool // from whoever has connected
	Data     []byte
}

// Between starts a proxy in front of a socket. It ends with tb.
func Between(tb testing.TB, suite *harness.Suite, target string) *Proxy {
	tb.Helper()
	p := &Proxy{
		Socket: filepath.Join(suite.Scratch(tb), "proxy.sock"), target: target,
		gate: make(chan struct{}), conns: map[net.Conn]bool{},
	}
	close(p.gate)
	listener, err := net.Listen("unix", p.Socket) //nolint:noctx // it does not block
	if err != nil {
		tb.Fatal(err)
	}
	p.listener = listener
	p.serving.Go(p.accept)
	tb.Cleanup(func() {
		p.Release()
		listener.Close()
		p.Cut()
		p.serving.Wait()
	})
	return p
}

// Look calls look with each chunk before it passes on. It may block; nil ends it.
func (p *Proxy) Look(look func(Chunk)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.look = look
}

// Hold keeps back whatever comes from now on.
func (p *Proxy) Hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gate = make(chan struct{})
}

// Release lets it go on.
func (p *Proxy) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
	default:
		close(p.gate)
	}
}

// Cut ends every connection. New ones may be made.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		conn.Close()
	}
}

// Chunks returns how many chunks have come so far, passed on or not.
func (p *Proxy) Chunks() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.chunks
}

func (p *Proxy) accept() {
	for {
		near, err := p.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("unix", p.target) //nolint:noctx // it does not block
		if err != nil {
			near.Close()
			continue
		}
		p.mu.Lock()
		p.conns[near], p.conns[far] = true, true
		p.mu.Unlock()
		p.serving.Go(func() { p.copy(near, far, true) })
		p.serving.Go(func() { p.copy(far, near, false) })
	}
}

// copy passes on what comes from one end until either ends.
func (p *Proxy) copy(from, to net.Conn, toTarget bool) {
	defer func() {
		from.Close()
		to.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, from)
	}()
	buf := make([]byte, 1<<20)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			p.mu.Lock()
			p.chunks++
			look, gate := p.look, p.gate
			p.mu.Unlock()
			if look != nil {
				look(Chunk{ToTarget: toTarget, Data: buf[:n]})
			}
			<-gate
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
