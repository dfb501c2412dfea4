package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

// injure does something to a node again and again while containers read.
func (n *node) injure(ctx context.Context, times int, how func(context.Context) error) (total seen, err error) {
	for done := 0; done < times; {
		s, err := n.round(ctx, func(over <-chan struct{}) error {
			for ; done < times; done++ {
				select {
				case <-over:
					return nil
				case <-time.After(time.Duration(rand.IntN(120)) * time.Millisecond):
				}
				if err := how(ctx); err != nil {
					return err
				}
				if done%4 == 0 {
					if err := harness.DropCaches(); err != nil {
						return err
					}
				}
			}
			return nil
		})
		total.add(s)
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// readers is how many containers read at once, passes how often they read all.
const (
	readers = 2
	passes  = 3
)

// round pulls the image again, has containers read it, and calls meanwhile while they
// do.
func (n *node) round(ctx context.Context, meanwhile func(over <-chan struct{}) error) (total seen, err error) {
	if err := errors.Join(n.pullLazily(ctx), harness.DropCaches()); err != nil {
		return total, err
	}
	var list []*container
	over := make(chan struct{})
	for range readers {
		c, err := n.read(ctx, passes)
		if err != nil {
			return total, err
		}
		list = append(list, c)
	}
	for _, c := range list { // the runtime's own reads are not what is tried
		select {
		case <-c.started:
		case <-c.done:
			return total, errors.Join(errors.New("a container ended before it began"), c.err)
		}
	}
	go func() {
		defer close(over)
		for _, c := range list {
			<-c.done
		}
	}()
	if err := meanwhile(over); err != nil { // there may be no daemon to serve them
		return total, fmt.Errorf("%w\n%s", err, n.daemon.Tail())
	}
	for _, c := range list {
		<-c.done
		err = errors.Join(err, c.err)
		total.add(c.seen)
	}
	if err != nil {
		return total, fmt.Errorf("%w\n%s", err, n.daemon.Tail())
	}
	return total, n.forget(ctx)
}
