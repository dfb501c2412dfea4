package predict

import "strings"

// importStatement is "import module", or "from ..module import names".
type importStatement struct {
	level  int // leading dots
	module string
	names  []string
}

// importStatements finds the imports of a Python source that run when the module
// is loaded: not those in functions, nor those for type checkers only. It splits
// the source into logical lines and looks at their first words; it is no parser
// and need not be one.
func importStatements(source []byte) []importStatement {
	var list []importStatement
	skip := -1 // indentation of a block that is not run
	for _, line := range logicalLines(source) {
		if skip >= 0 && line.indent > skip {
			continue
		}
		skip = -1
		for part := range strings.SplitSeq(line.text, ";") {
			words := strings.Fields(part)
			if len(words) == 0 {
				continue
			}
			switch words[0] {
			case "def", "async":
				skip = line.indent
			case "if":
				if strings.Contains(part, "TYPE_CHECKING") || strings.Contains(part, "__main__") && strings.Contains(part, "__name__") && line.indent > 0 {
					skip = line.indent
				}
			case "import":
				for item := range strings.SplitSeq(strings.TrimPrefix(strings.TrimSpace(part), "import"), ",") {
					if f := strings.Fields(item); len(f) > 0 {
						list = append(list, importStatement{module: f[0]})
					}
				}
			case "from":
				if s, ok := fromImport(part); ok {
					list = append(list, s)
				}
			}
		}
	}
	return list
}

func fromImport(text string) (s importStatement, ok bool) {
	rest := strings.TrimPrefix(strings.TrimSpace(text), "from")
	module, names, ok := strings.Cut(rest, " import")
	if !ok {
		return s, false
	}
	module = strings.TrimSpace(module)
	s.module = strings.TrimLeft(module, ".")
	s.level = len(module) - len(s.module)
	for item := range strings.SplitSeq(strings.Trim(strings.TrimSpace(names), "()"), ",") {
		if f := strings.Fields(item); len(f) > 0 && f[0] != "*" {
			s.names = append(s.names, f[0])
		}
	}
	return s, true
}

type logicalLine struct {
	indent int
	text   string // without comments and contents of strings
}

// logicalLines joins lines within brackets and after backslashes, and drops
// strings and comments.
func logicalLines(source []byte) []logicalLine {
	var list []logicalLine
	var text []byte
	indent, depth := 0, 0
	start := true
	end := func() {
		if len(text) > 0 {
			list = append(list, logicalLine{indent, string(text)})
		}
		text, indent, start = text[:0], 0, true
	}
	for i := 0; i < len(source); i++ {
		c := source[i]
		if start && depth == 0 {
			switch c {
			case ' ':
				indent++
				continue
			case '\t':
				indent = indent/8*8 + 8
				continue
			}
			start = false
		}
		switch c {
		case '\n':
			if depth > 0 {
				text = append(text, ' ')
			} else {
				end()
			}
		case '\\':
			if i+1 < len(source) && source[i+1] == '\n' {
				i++
				text = append(text, ' ')
			}
		case '#':
			for i+1 < len(source) && source[i+1] != '\n' {
				i++
			}
		case '"', '\'':
			i = stringEnd(source, i)
			text = append(text, '"', '"')
		case '(', '[', '{':
			depth++
			text = append(text, c)
		case ')', ']', '}':
			depth = max(0, depth-1)
			text = append(text, c)
		default:
			text = append(text, c)
		}
	}
	end()
	return list
}

// stringEnd is the index of a string's last byte. A string of one line ends
// there at the latest.
func stringEnd(source []byte, i int) int {
	quote := source[i]
	if i+2 < len(source) && source[i+1] == quote && source[i+2] == quote {
		for j := i + 3; j+2 < len(source); j++ {
			if source[j] == '\\' {
				j++
			} else if source[j] == quote && source[j+1] == quote && source[j+2] == quote {
				return j + 2
			}
		}
		return len(source) - 1
	}
	for j := i + 1; j < len(source); j++ {
		switch source[j] {
		case '\\':
			j++
		case quote:
			return j
		case '\n':
			return j - 1
		}
	}
	return len(source) - 1
}
