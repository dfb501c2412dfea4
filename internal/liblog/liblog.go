// Package liblog redirects the logs of libraries, containerd's and gRPC's, to the
// program's own. It changes global state: a program calls it once, at its start.
package liblog

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"maps"
	"slices"

	"github.com/containerd/log"
	"google.golang.org/grpc/grpclog"
)

// Redirect sends the libraries' logs to l: warnings and errors with their level, the
// rest, which is about single requests, as debug messages.
func Redirect(l *slog.Logger) {
	to := l.With("library", "containerd")
	logger := log.L.Logger
	logger.SetOutput(io.Discard)
	logger.SetLevel(log.WarnLevel)
	if l.Enabled(context.Background(), slog.LevelDebug) {
		logger.SetLevel(log.DebugLevel)
	}
	clear(logger.Hooks) // of an earlier call
	logger.AddHook(hook{to})
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, lines{l.With("library", "grpc")}))
}

// hook is called by containerd's logger for each entry.
type hook struct{ to *slog.Logger }

func (hook) Levels() []log.Level {
	return []log.Level{log.PanicLevel, log.FatalLevel, log.ErrorLevel, log.WarnLevel, log.InfoLevel, log.DebugLevel}
}

func (h hook) Fire(e *log.Entry) error {
	level := slog.LevelDebug
	switch {
	case e.Level <= log.ErrorLevel: // more severe levels are smaller
		level = slog.LevelError
	case e.Level == log.WarnLevel:
		level = slog.LevelWarn
	}
	var attrs []slog.Attr
	for _, key := range slices.Sorted(maps.Keys(e.Data)) {
		attrs = append(attrs, slog.Any(key, e.Data[key]))
	}
	h.to.LogAttrs(context.Background(), level, e.Message, attrs...)
	return nil
}

// lines takes the lines that gRPC's logger prints for errors: a time, "ERROR: " and the
// text.
type lines struct{ to *slog.Logger }

func (l lines) Write(b []byte) (int, error) {
	text := b
	if _, after, ok := bytes.Cut(b, []byte("ERROR: ")); ok {
		text = after
	}
	l.to.Error(string(bytes.TrimSpace(text)))
	return len(b), nil
}
