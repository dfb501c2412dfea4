package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"oras.land/oras-go/v2/registry/remote/credentials"
)

// credential is what a registry's token server, or the registry itself, is shown.
type credential struct {
	user, secret string // both empty where there is none
	// source says where it is from, or where one was looked for, in words for an
	// error: it never has the secret.
	source string
}

func (c credential) none() bool { return c.secret == "" }

// helperTimeout bounds a credential helper, a program that may ask a cloud.
const helperTimeout = 30 * time.Second

// dockerCredentials looks hosts up in a config.json each time they are asked
// for, so that a renewed login is seen without a restart.
func dockerCredentials(path string) (func(host string) (credential, error), error) {
	if _, err := os.Stat(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	path = filepath.Clean(path)
	return func(host string) (credential, error) {
		store, err := credentials.NewStore(path, credentials.StoreOptions{})
		if err != nil {
			return credential{}, fmt.Errorf("read %s: %w", path, err)
		}
		address := credentials.ServerAddressFromHostname(host)
		helper := helperOf(path, address)
		ctx, cancel := context.WithTimeout(context.Background(), helperTimeout)
		defer cancel()
		cred, err := store.Get(ctx, address)
		if err != nil {
			return credential{}, fmt.Errorf("credentials for %s from %s%s: %w", host, path, suffix(" by helper ", helper), err)
		}
		c := credential{user: cred.Username, secret: cred.Password}
		if cred.RefreshToken != "" {
			// docker's identity token goes as a secret without a user name.
			c = credential{secret: cred.RefreshToken}
		}
		switch {
		case c.none():
			c.source = fmt.Sprintf("no credentials: %s has none for %s%s", path, host, suffix(" from helper ", helper))
		case helper != "":
			c.source = fmt.Sprintf("credentials for %s from docker-credential-%s of %s", host, helper, path)
		default:
			c.source = fmt.Sprintf("credentials for %s from %s", host, path)
		}
		return c, nil
	}, nil
}

func suffix(lead, s string) string {
	if s == "" {
		return ""
	}
	return lead + s
}

// helperOf is the credential helper that docker's configuration names for a
// server, or "". A file that cannot be read is the store's to complain of.
func helperOf(path, server string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	var c struct {
		Helpers map[string]string `json:"credHelpers"`
		Store   string            `json:"credsStore"`
	}
	if json.Unmarshal(b, &c) != nil {
		return ""
	}
	if h := c.Helpers[server]; h != "" {
		return h
	}
	return c.Store
}
