package layer

// nameMountpoint picks a layer's mountpoint: so many digits of its digest as no
// other layer's mountpoint has, since overlay's options have little room.
func (l *Set) nameMountpoint(layer *Layer) string {
	if f := layer.files; f != nil && f.Mountpoint != "" {
		return f.Mountpoint
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	hex := layer.digest.Encoded()
	const least = 12
	for n := least; ; n++ {
		name := hex[:n]
		if owner, taken := l.mountpoints[name]; !taken || owner == layer.digest || n == len(hex) {
			l.mountpoints[name] = layer.digest
			return name
		}
	}
}
