// Package registry reads manifests, referrers and ranges of blobs from OCI
// registries.
//
// # Model
//
// A [Client] holds what a node knows of registries: containerd's resolver
// configuration (a hosts.toml directory), docker's config.json with its
// credential helpers, connections, tokens. A [Repository] is one name in one
// registry, and a [Blob] is random access to one blob of it. An operation goes
// to the configured hosts in their order, mirrors first.
//
// # Each concern in one place
//
//   - request.go sends one request to one host: authorization, a fresh token
//     after 401 and 403, redirects. A redirect to another origin gets neither
//     credentials nor configured headers, only what the request itself needs.
//   - retry.go decides what is tried again and when: lost connections, 408,
//     429 and 5xx, with exponential backoff, jitter and the server's
//     Retry-After. Nothing else in the project retries requests.
//   - blob.go turns answers into exactly the bytes asked for: 206 whose range is
//     another, 200 instead of 206, bodies that end early or stall.
//
// # Concurrency and failure
//
// Everything may be used from many goroutines. A read returns all its bytes or
// an error, which is an [*Error] with the operation, the host and the status;
// its text never has credentials or the query of a signed URL. Blob bytes are
// not verified here: the caller has finer digests than the blob's. Manifests
// are checked against their digests.
//
// How many requests are in flight is the caller's business.
package registry
