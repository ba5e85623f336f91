package nri

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/containerd/log"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/sirupsen/logrus"
)

// A logger lets the stub write to our log. What is news to the stub is detail to us.
type logger struct{ log *slog.Logger }

var _ nrilog.Logger = (*logger)(nil)

func (l *logger) Debugf(ctx context.Context, format string, args ...any) {
	l.print(ctx, slog.LevelDebug, format, args)
}

func (l *logger) Infof(ctx context.Context, format string, args ...any) {
	l.print(ctx, slog.LevelDebug, format, args)
}

func (l *logger) Warnf(ctx context.Context, format string, args ...any) {
	l.print(ctx, slog.LevelWarn, format, args)
}

func (l *logger) Errorf(ctx context.Context, format string, args ...any) {
	l.print(ctx, slog.LevelWarn, format, args)
}

func (l *logger) print(ctx context.Context, level slog.Level, format string, args []any) {
	if l.log.Enabled(ctx, level) {
		l.log.Log(ctx, level, "NRI: "+fmt.Sprintf(format, args...))
	}
}

// withLog lets what serves the runtime's requests under ctx write to our log: it knows
// one by its context. It complains of every connection that ends under a reply.
func (p *Plugin) withLog(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true})
	l.SetOutput(slog.NewLogLogger(p.log.Handler(), slog.LevelDebug).Writer())
	return log.WithLogger(ctx, logrus.NewEntry(l))
}
