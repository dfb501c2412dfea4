package index

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Platforms are those of an image that are wanted. None is all that it has.
type Platforms []v1.Platform

// ParsePlatforms reads "all", or platforms such as "linux/amd64,linux/arm64".
func ParsePlatforms(s string) (list Platforms, err error) {
	if s == "all" {
		return nil, nil
	}
	for one := range strings.SplitSeq(s, ",") {
		p, err := platforms.Parse(strings.TrimSpace(one))
		if err != nil {
			return nil, fmt.Errorf("platform %q: write it as linux/amd64: %w", one, err)
		}
		list = append(list, p)
	}
	return list, nil
}

// choose picks a manifest for each wanted platform: all of them, or an error that
// names those that there are.
func (want Platforms) choose(ref string, manifests []v1.Descriptor) (chosen []v1.Descriptor, err error) {
	var there []v1.Descriptor
	var names []string
	for _, m := range manifests {
		// An unknown one is what image builders say of an attestation.
		if m.Platform != nil && m.Platform.OS != "unknown" {
			there = append(there, m)
			names = append(names, platforms.FormatAll(*m.Platform))
		}
	}
	if want == nil {
		chosen = there
	}
	for _, p := range want {
		match := platforms.Only(p)
		best := -1
		for i, m := range there {
			if match.Match(*m.Platform) && (best < 0 || match.Less(*m.Platform, *there[best].Platform)) {
				best = i
			}
		}
		if best < 0 {
			return nil, fmt.Errorf("image %s has nothing for platform %s; it has %s", ref, platforms.FormatAll(p), strings.Join(names, ", "))
		}
		if !slices.ContainsFunc(chosen, func(d v1.Descriptor) bool { return d.Digest == there[best].Digest }) {
			chosen = append(chosen, there[best])
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("image %s has no manifest for any platform", ref)
	}
	return chosen, nil
}

// allow fails where an image that has one platform only is not for a wanted one.
// An image that does not say is for all.
func (want Platforms) allow(ref string, is v1.Platform) error {
	for _, p := range want {
		if is.OS != "" && is.Architecture != "" && !platforms.Only(p).Match(is) {
			return fmt.Errorf("image %s has nothing for platform %s; it has %s", ref, platforms.FormatAll(p), platforms.FormatAll(is))
		}
	}
	return nil
}
