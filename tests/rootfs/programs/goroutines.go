// A static Go program: goroutines on several threads, timers, preemption of a busy loop, files.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	runtime.GOMAXPROCS(4)
	var sum atomic.Int64
	var group sync.WaitGroup
	for i := 1; i <= 1000; i++ {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			for j := 0; j < 100; j++ {
				sum.Add(int64(i))
				runtime.Gosched()
			}
		}(i)
	}
	group.Wait()
	fmt.Println("sum", sum.Load())

	// Timers fire in order of their deadlines, not of their creation.
	order := make(chan int, 5)
	for i := 5; i >= 1; i-- {
		time.AfterFunc(time.Duration(i)*15*time.Millisecond, func() { order <- i })
	}
	for i := 0; i < 5; i++ {
		fmt.Println("timer", <-order)
	}

	// A loop without calls is interrupted by signals (SIGURG) so that collection can go on.
	var stop atomic.Bool
	runtime.GOMAXPROCS(1)
	go func() {
		for x := 0; !stop.Load(); x++ {
		}
	}()
	time.Sleep(30 * time.Millisecond)
	garbage := make([][]byte, 0)
	for i := 0; i < 200; i++ {
		garbage = append(garbage, make([]byte, 64<<10))
		if i%50 == 0 {
			runtime.GC()
			garbage = garbage[:0]
		}
	}
	stop.Store(true)
	fmt.Println("collected")

	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	<-ctx.Done()
	fmt.Println(ctx.Err())

	if err := os.WriteFile("/tmp/go", []byte("written"), 0o600); err != nil {
		panic(err)
	}
	content, err := os.ReadFile("/tmp/go")
	fmt.Println(string(content), err)
	_, err = os.Open("/tmp/missing")
	fmt.Println(err)

	defer func() {
		fmt.Println("recovered:", recover())
		os.Exit(3)
	}()
	var nothing *struct{ field int }
	fmt.Println(nothing.field)
}
