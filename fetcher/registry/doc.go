// Package registry reads manifests, referrers and ranges of content from OCI
// registries.
//
// # Model
//
// A [Client] holds what a node knows of registries: containerd's resolver
// configuration (a hosts.toml directory), docker's config.json with its
// credential helpers, connections, tokens. A [Repository] is one name in one
// registry, and a [Content] is random access to one packed layer, or index, of it. An operation goes
// to the configured hosts in their order, mirrors first.
//
// # Each concern in one place
//
//   - client.go and hosts.go read the configuration, and read it again after
//     failures that it may have caused. HTTP/2 is on.
//   - auth.go, token.go and credentials.go answer a host's challenges. A
//     token is asked for once for all who wait, in a context that none of them
//     ends; a failure is not remembered, and a refused token is replaced once.
//   - request.go sends one request to the hosts in their order: redirects, which
//     host's error to report. A redirect to another origin gets neither
//     credentials nor configured headers, only what the request itself needs.
//   - health.go remembers hosts that fail, distrust.go hosts that gave wrong bytes:
//     they are asked last, for a time.
//   - retry.go decides what is tried again and when: lost connections, 408,
//     429 and 5xx, with exponential backoff, jitter and the server's
//     Retry-After. Refusals, missing things and mistakes in the configuration are
//     not, however patient the reader. Nothing else in the project retries
//     requests. pause.go lends the request's place out meanwhile.
//   - content.go and reader.go turn answers into exactly the bytes asked for: 206
//     whose range is another, 200 instead of 206, bodies that end early or stall.
//   - probe.go asks whether a layer can be read, before a mount depends on it.
//   - trouble.go tells which registries do not give what is asked of them: from
//     the first try that is late, until one succeeds or the node asks no more.
//
// # Concurrency and failure
//
// Everything may be used from many goroutines. A read returns all its bytes or
// an error, which is an [*Error] with the operation, the host, the status and the
// credentials that were tried; its text never has credentials or the query of a
// signed URL. Content is not verified here: the caller has finer digests than
// the whole content's, and rejects bytes that are wrong, so that another host is asked.
// Manifests are checked against their digests.
//
// How many requests are in flight is the caller's business.
package registry
