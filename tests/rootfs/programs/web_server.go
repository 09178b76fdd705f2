// An HTTP server: GET /SEED/SIZE gives bytes by a pattern, POST tells of its body.
package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			length, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, "POST %s %d\n", r.URL.Path, length)
			return
		}
		var seed, size int
		fmt.Sscanf(r.URL.Path, "/%d/%d", &seed, &size)
		pattern := make([]byte, 251)
		for at := range pattern {
			pattern[at] = byte((seed + at) % 251)
		}
		w.Write(bytes.Repeat(pattern, size/251))
	})
	log.Fatal(http.ListenAndServe("0.0.0.0:80", nil))
}
