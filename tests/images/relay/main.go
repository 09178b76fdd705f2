// relay runs a server and carries TCP connections to it over its own standard streams.
//
//	relay PORT PROGRAM [ARGUMENT...]
//
// Both ways: frames of a connection's number and a length (32 bits each, big-endian), then so many
// bytes; no bytes end the connection. The server's output goes to standard error. The end of
// standard input ends it all.
package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"
)

const startTimeout = 60 * time.Second

var output sync.Mutex

func send(number uint32, data []byte) {
	output.Lock()
	defer output.Unlock()
	head := binary.BigEndian.AppendUint32(nil, number)
	head = binary.BigEndian.AppendUint32(head, uint32(len(data)))
	os.Stdout.Write(append(head, data...))
}

func carry(number uint32, connection net.Conn) {
	buffer := make([]byte, 16<<10)
	for {
		count, err := connection.Read(buffer)
		if count > 0 {
			send(number, buffer[:count])
		}
		if err != nil {
			send(number, nil)
			return
		}
	}
}

func dial(address string, deadline time.Time) (net.Conn, error) {
	for {
		connection, err := net.Dial("tcp", address)
		if err == nil || time.Now().After(deadline) {
			return connection, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "relay:", err)
	os.Exit(1)
}

func main() {
	address := "127.0.0.1:" + os.Args[1]
	server := exec.Command(os.Args[2], os.Args[3:]...)
	server.Stdout, server.Stderr = os.Stderr, os.Stderr
	if err := server.Start(); err != nil {
		fail(err)
	}
	go func() { fail(fmt.Errorf("the server ended: %v", server.Wait())) }()
	deadline := time.Now().Add(startTimeout)
	connections := map[uint32]net.Conn{}
	head := make([]byte, 8)
	for {
		if _, err := io.ReadFull(os.Stdin, head); err != nil {
			server.Process.Kill()
			os.Exit(0)
		}
		number := binary.BigEndian.Uint32(head)
		data := make([]byte, binary.BigEndian.Uint32(head[4:]))
		if _, err := io.ReadFull(os.Stdin, data); err != nil {
			fail(err)
		}
		connection := connections[number]
		if connection == nil {
			var err error
			if connection, err = dial(address, deadline); err != nil {
				fail(err)
			}
			connections[number] = connection
			go carry(number, connection)
		}
		if len(data) == 0 {
			connection.(*net.TCPConn).CloseWrite()
			delete(connections, number)
		} else if _, err := connection.Write(data); err != nil {
			connection.Close()
		}
	}
}
