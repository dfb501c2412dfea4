package snapshot

// ParseMapping reads the labels of a mapping. ok is false where there is none.
func ParseMapping(labels map[string]string) (uids, gids string, ok bool, err error) {
	m, err := parseMapping(labels)
	if m == nil {
		return "", "", false, err
	}
	return m.uidLabel, m.gidLabel, true, err
}
