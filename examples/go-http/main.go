// A key-value store in memory: PUT /kv/NAME keeps the body, GET /kv/NAME gives it back.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"runtime"
	"sync"
	"time"
)

const (
	maxValueBytes = 64 << 10
	maxKeys       = 1000
)

func main() {
	var mutex sync.RWMutex
	values := map[string][]byte{}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		mutex.RLock()
		defer mutex.RUnlock()
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, "{\"language\":%q,\"keys\":%d}\n", runtime.Version(), len(values))
	})
	mux.HandleFunc("GET /kv/{key}", func(w http.ResponseWriter, r *http.Request) {
		mutex.RLock()
		value, found := values[r.PathValue("key")]
		mutex.RUnlock()
		if !found {
			http.NotFound(w, r)
			return
		}
		w.Write(value)
	})
	mux.HandleFunc("PUT /kv/{key}", func(w http.ResponseWriter, r *http.Request) {
		value, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxValueBytes))
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		mutex.Lock()
		defer mutex.Unlock()
		if _, found := values[r.PathValue("key")]; !found && len(values) >= maxKeys {
			http.Error(w, "enough keys", http.StatusInsufficientStorage)
			return
		}
		values[r.PathValue("key")] = value
		w.WriteHeader(http.StatusNoContent)
	})
	server := &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	log.Print("go-http on port 8080")
	log.Fatal(server.ListenAndServe())
}
