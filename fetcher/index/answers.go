package index

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
)

// How long an answer of a repository is remembered: for the other layers of the same
// pull, and for the predictions of their image. That there is no index is forgotten
// sooner, since it may be pushed at any moment.
const (
	keepFound = 2 * time.Minute
	keepNone  = 10 * time.Second
	// mostAnswers is how many are remembered: those of the pulls under way.
	mostAnswers = 32
)

// resolveTime bounds one request of a Resolver that several calls wait for.
const resolveTime = time.Minute

// answers is what repositories have said of images' indexes.
type answers struct {
	asking singleflight.Group

	mu   sync.Mutex
	list map[string]answer // by repository and image
}

// answer is what a repository has said of an image's index.
type answer struct {
	artifact   *Artifact
	err        error // nil, or one that matches ErrNone where it is remembered
	at         time.Time
	remembered bool
}

func answerKey(repo *registry.Repository, image digest.Digest) string {
	return repo.Name() + "@" + image.String()
}

// get returns what is remembered, or asks the repository, once for all calls at the
// same time.
func (s *answers) get(ctx context.Context, repo *registry.Repository, image digest.Digest) answer {
	key := answerKey(repo, image)
	if a, ok := s.known(key); ok {
		return a
	}
	a, err := once(ctx, &s.asking, key, func(ctx context.Context) (answer, error) {
		artifact, err := findArtifact(ctx, repo, image)
		a := answer{artifact: artifact, err: err, at: time.Now()}
		if err == nil || errors.Is(err, ErrNone) {
			s.remember(key, a)
		}
		return a, nil
	})
	if err != nil {
		return answer{err: err}
	}
	return a
}

func (s *answers) known(key string) (answer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.list[key]
	a.remembered = true
	return a, ok && !a.expired(time.Now())
}

func (a answer) expired(now time.Time) bool {
	keep := keepFound
	if a.err != nil {
		keep = keepNone
	}
	return now.Sub(a.at) >= keep
}

// remember adds an answer, and drops those that have expired, or the oldest one.
func (s *answers) remember(key string, a answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.list == nil {
		s.list = map[string]answer{}
	}
	oldest := ""
	for k, other := range s.list {
		switch {
		case other.expired(a.at):
			delete(s.list, k)
		case oldest == "" || other.at.Before(s.list[oldest].at):
			oldest = k
		}
	}
	if len(s.list) >= mostAnswers {
		delete(s.list, oldest)
	}
	s.list[key] = a
}

// forget drops an answer, unless another one has taken its place.
func (s *answers) forget(repo *registry.Repository, image digest.Digest, old answer) {
	key := answerKey(repo, image)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.list[key].at.Equal(old.at) {
		delete(s.list, key)
	}
}

// once has one call of f serve all calls for the same key at the same time. It belongs
// to none of them: it does not end with the context of the first one, nor has what that
// one carries, such as a fetch's place in a budget, which ends with the fetch.
func once[T any](ctx context.Context, g *singleflight.Group, key string, f func(context.Context) (T, error)) (T, error) {
	done := g.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), resolveTime)
		defer cancel()
		return f(ctx)
	})
	var none T
	select {
	case r := <-done:
		if r.Err != nil {
			return none, r.Err
		}
		return r.Val.(T), nil
	case <-ctx.Done():
		return none, ctx.Err()
	}
}
