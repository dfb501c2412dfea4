package registrytest

import (
	"fmt"
	"net/http"
	"strconv"
)

// Fault changes how one request is answered. It returns whether it did so. Content
// is the blob's, and nil for a token request.
type Fault func(w http.ResponseWriter, req *http.Request, content []byte) bool

// Status answers with a status, and with Retry-After where seconds is not "".
func Status(code int, seconds string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
		if seconds != "" {
			w.Header().Set("Retry-After", seconds)
		}
		w.WriteHeader(code)
		return true
	}
}

// Whole ignores the range and answers 200 with everything.
func Whole(w http.ResponseWriter, req *http.Request, content []byte) bool {
	req.Header.Del("Range")
	ServeRange(w, req, content)
	return true
}

// Short announces the whole range and breaks off after n bytes.
func Short(n int) Fault {
	return func(w http.ResponseWriter, req *http.Request, content []byte) bool {
		first, last := bounds(req)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(content)))
		w.Header().Set("Content-Length", strconv.Itoa(last-first+1))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(content[first : first+n])
		panic(http.ErrAbortHandler)
	}
}

// OtherRange answers with a range that was not asked for.
func OtherRange(w http.ResponseWriter, req *http.Request, content []byte) bool {
	first, last := bounds(req)
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first+1, last, len(content)))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(content[first+1 : last+1])
	return true
}

// Flip damages one byte of the answer.
func Flip(w http.ResponseWriter, req *http.Request, content []byte) bool {
	first, last := bounds(req)
	bad := append([]byte(nil), content...)
	bad[(first+last)/2] ^= 0x40
	ServeRange(w, req, bad)
	return true
}

// Redirect sends the client elsewhere.
func Redirect(to string) Fault {
	return func(w http.ResponseWriter, req *http.Request, _ []byte) bool {
		http.Redirect(w, req, to, http.StatusTemporaryRedirect)
		return true
	}
}

// Hang answers the header and then nothing until the client goes away.
func Hang(w http.ResponseWriter, req *http.Request, content []byte) bool {
	first, last := bounds(req)
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(content)))
	w.WriteHeader(http.StatusPartialContent)
	_ = http.NewResponseController(w).Flush()
	<-req.Context().Done()
	return true
}

func bounds(req *http.Request) (first, last int) {
	_, _ = fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &first, &last)
	return first, last
}

// Silent answers nothing at all until the client goes away.
func Silent(_ http.ResponseWriter, req *http.Request, _ []byte) bool {
	<-req.Context().Done()
	return true
}

// Until answers nothing until a channel is closed, then what would have been.
func Until(gate <-chan struct{}) Fault {
	return func(_ http.ResponseWriter, req *http.Request, _ []byte) bool {
		select {
		case <-gate:
		case <-req.Context().Done():
		}
		return false
	}
}

// Garbage answers 200 with a page, as a captive portal does.
func Garbage(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
	w.Header().Set("Content-Type", "text/html")
	fmt.Fprint(w, "<html>please log in</html>")
	return true
}
