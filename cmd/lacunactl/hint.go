package main

import (
	"errors"
	"net/http"
	"strings"

	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
)

// hint says what a user can do about an error of a registry.
func hint(err error) string {
	status := 0
	var ours *registry.Error
	var theirs remoteerrors.ErrUnexpectedStatus // of a push
	switch {
	case errors.As(err, &theirs):
		status = theirs.StatusCode
	case errors.As(err, &ours):
		status = ours.Status
	}
	switch {
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return " (the registry uses HTTP: give --plain-http)"
	case status == http.StatusMethodNotAllowed:
		return " (the registry, or a mirror of it, is read-only)"
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return " (give credentials with --user or --docker-config)"
	}
	return ""
}
