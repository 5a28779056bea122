package tracer

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

func validRequest() Request {
	return Request{
		Version: Version, PID: 100, StartTime: 5000, MaxStop: 3 * time.Millisecond,
		Zombies: []Zombie{{PID: 101, StartTime: 5001, NSPID: 7}, {PID: 4194303, StartTime: 1<<64 - 1, NSPID: 8, ID: 1<<64 - 1}},
		Age:     time.Second, Probe: true,
	}
}

func validReport() Report {
	return Report{
		Version: Version, Attached: true, Attaches: 2, TID: 100, Syscall: "poll", Stopped: 60 * time.Microsecond,
		Results: []Result{{PID: 101, Outcome: Reaped}, {PID: 102, Outcome: Refused, Reason: ReasonWaiting}},
	}
}

func TestRequestRoundTrip(t *testing.T) {
	line, err := EncodeRequest(validRequest())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(line), "\n") != 1 || !strings.HasSuffix(string(line), "\n") {
		t.Errorf("not one line: %q", line)
	}
	got, err := DecodeRequest(line)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, validRequest()) {
		t.Errorf("got %+v, want %+v", got, validRequest())
	}
}

func TestBadRequests(t *testing.T) {
	tests := []struct {
		name string
		edit func(*Request)
	}{
		{"another version", func(r *Request) { r.Version = Version + 1 }},
		{"no pid", func(r *Request) { r.PID = 0 }},
		{"pid too large", func(r *Request) { r.PID = maxPID + 1 }},
		{"no zombies", func(r *Request) { r.Zombies = nil }},
		{"too many zombies", func(r *Request) { r.Zombies = make([]Zombie, MaxZombies+1) }},
		{"zombie without pid", func(r *Request) { r.Zombies[0].PID = 0 }},
		{"wait for any child", func(r *Request) { r.Zombies[0].NSPID = -1 }},
		{"number too large", func(r *Request) { r.Zombies[0].NSPID = maxPID + 1 }},
		{"PID 1 as zombie", func(r *Request) { r.Zombies[0].PID = r.PID }},
		{"negative budget", func(r *Request) { r.MaxStop = -1 }},
		{"endless budget", func(r *Request) { r.MaxStop = MaxMaxStop + 1 }},
		{"negative rest", func(r *Request) { r.Rest = -1 }},
		{"endless rest", func(r *Request) { r.Rest = MaxRest + 1 }},
		{"attaches without end", func(r *Request) { r.Attaches = MaxAttaches + 1 }},
		{"less than no attach", func(r *Request) { r.Attaches = -1 }},
		{"dead in the future", func(r *Request) { r.Age = -1 }},
	}
	for _, tc := range tests {
		r := validRequest()
		tc.edit(&r)
		if _, err := EncodeRequest(r); !errors.Is(err, errProtocol) {
			t.Errorf("%s: error %v", tc.name, err)
		}
	}
	for _, text := range []string{
		"", "{", "null", "[]", "{}", `{"version":4}`, `{"version":4,"pid":2,"zombies":"3:0:1:0","more":1}`,
		`{"version":4,"pid":2,"zombies":"3:0:1:0"} {}`, `{"version":4,"pid":"2","zombies":"3:0:1:0"}`,
		`{"version":4,"pid":2,"zombies":[{"pid":3}]}`, `{"version":4,"pid":2,"zombies":"3:0:1"}`, `{"version":4,"pid":2,"zombies":"3:0:1:0:0"}`,
		`{"version":4,"pid":2,"zombies":" 3:0:1:0"}`, `{"version":4,"pid":2,"zombies":"3:0:1:0  4:0:2:0"}`, `{"version":4,"pid":2,"zombies":"3:0:-1:0"}`,
		`{"version":4,"pid":2,"zombies":"+3:0:1:0"}`, `{"version":4,"pid":2,"zombies":"3:0x1:1:0"}`, `{"version":4,"pid":2,"zombies":"3:18446744073709551616:1:0"}`,
		`{"version":4,"pid":2,"zombies":"4194305:0:1:0"}`, `{"version":4,"pid":2,"zombies":3}`,
		strings.Repeat(" ", maxLine+1),
	} {
		if _, err := DecodeRequest([]byte(text)); err == nil {
			t.Errorf("%.60q is accepted", text)
		}
	}
}

// The corpus of the fuzz targets is of this version of the protocol, or it would get no further than to that.
func TestCorpusIsCurrent(t *testing.T) {
	for target, decode := range map[string]func([]byte) error{
		"FuzzDecodeRequest": func(line []byte) error { _, err := DecodeRequest(line); return err },
		"FuzzDecodeReport":  func(line []byte) error { _, err := DecodeReport(line); return err },
	} {
		text, err := os.ReadFile(filepath.Join("testdata/fuzz", target, "valid"))
		if err != nil {
			t.Fatal(err)
		}
		_, quoted, _ := strings.Cut(strings.TrimSpace(string(text)), "[]byte(")
		line, err := strconv.Unquote(strings.TrimSuffix(quoted, ")"))
		if err != nil {
			t.Fatalf("%s: %v", target, err)
		}
		if err := decode([]byte(strings.TrimSuffix(line, "\n"))); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
}

func TestLargestMessagesFit(t *testing.T) {
	req := validRequest()
	rep := validReport()
	rep.Detail, rep.Results = strings.Repeat("é", maxDetail), nil
	req.Zombies = nil
	for range MaxZombies {
		req.Zombies = append(req.Zombies, Zombie{PID: maxPID, StartTime: 1<<64 - 1, NSPID: maxPID, ID: 1<<64 - 1})
		rep.Results = append(rep.Results, Result{PID: maxPID, Outcome: Vanished, Reason: ReasonZombieTraced, NSPID: maxPID})
	}
	if _, err := EncodeRequest(req); err != nil {
		t.Error(err)
	}
	line, err := EncodeReport(rep)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeReport(line)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Detail) > maxDetail || !strings.HasPrefix(rep.Detail, got.Detail) {
		t.Errorf("detail of %d bytes", len(got.Detail))
	}
	if err := got.answers(req); err != nil {
		t.Error(err)
	}
}

func TestBadReports(t *testing.T) {
	tests := []struct {
		name string
		edit func(*Report)
	}{
		{"another version", func(r *Report) { r.Version++ }},
		{"unknown outcome", func(r *Report) { r.Results[0].Outcome = "eaten" }},
		{"reaped for a reason", func(r *Report) { r.Results[0].Reason = ReasonBusy }},
		{"left without one", func(r *Report) { r.Results[1] = Result{PID: 102, Outcome: Left} }},
		{"stopped for less than nothing", func(r *Report) { r.Stopped = -1 }},
		{"attached without an attach", func(r *Report) { r.Attaches = 0 }},
		{"an attach without being attached", func(r *Report) { r.Attached = false }},
		{"more attaches than can be", func(r *Report) { r.Attaches = MaxAttaches + 1 }},
		{"negative tid", func(r *Report) { r.TID = -1 }},
		{"a reason of two fields", func(r *Report) { r.Results[1].Reason = "a:b" }},
		{"a reason of two items", func(r *Report) { r.Results[1].Reason = "a b" }},
		{"endless reason", func(r *Report) { r.Reason = Reason(strings.Repeat("x", maxDetail+1)) }},
	}
	for _, tc := range tests {
		r := validReport()
		tc.edit(&r)
		if _, err := EncodeReport(r); !errors.Is(err, errProtocol) {
			t.Errorf("%s: error %v", tc.name, err)
		}
	}
	req := validRequest()
	if err := validReport().answers(req); !errors.Is(err, errProtocol) {
		t.Errorf("results of other zombies: %v", err)
	}
}

func TestReadLine(t *testing.T) {
	r := bufio.NewReaderSize(strings.NewReader("one\n\nthree"), 16)
	for _, want := range []string{"one", ""} {
		if line, err := readLine(r); err != nil || string(line) != want {
			t.Errorf("got %q, %v, want %q", line, err, want)
		}
	}
	if _, err := readLine(r); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half a line: %v", err)
	}
	if _, err := readLine(r); !errors.Is(err, io.EOF) {
		t.Errorf("end: %v", err)
	}
	r = bufio.NewReaderSize(strings.NewReader(strings.Repeat("x", 17)), 16)
	if _, err := readLine(r); !errors.Is(err, errLineTooLong) {
		t.Errorf("too long: %v", err)
	}
}

// What is decoded can be encoded, and comes back the same.
func FuzzDecodeRequest(f *testing.F) {
	line, _ := EncodeRequest(validRequest())
	f.Add(line)
	f.Add([]byte(`{"version":4,"pid":2,"startTime":3,"zombies":"3:4:5:6"}`))
	f.Add([]byte(`{"version":4,"pid":1e2,"zombies":""}`))
	f.Add([]byte("{}\n{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		req, err := DecodeRequest(data)
		if err != nil {
			return
		}
		line, err := EncodeRequest(req)
		if err != nil {
			t.Fatalf("decoded but not encodable: %v", err)
		}
		if again, err := DecodeRequest(line); err != nil || !reflect.DeepEqual(again, req) {
			t.Fatalf("%+v became %+v, %v", req, again, err)
		}
	})
}

func FuzzDecodeReport(f *testing.F) {
	line, _ := EncodeReport(validReport())
	f.Add(line)
	f.Add([]byte(`{"version":4,"attached":false,"reason":"busy","stoppedNs":0,"results":"1:left:declined:0"}`))
	f.Add([]byte(`{"version":4,"results":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		rep, err := DecodeReport(data)
		if err != nil {
			return
		}
		line, err := EncodeReport(rep)
		if err != nil {
			t.Fatalf("decoded but not encodable: %v", err)
		}
		again, err := DecodeReport(line)
		if err != nil || !reflect.DeepEqual(again, rep) {
			t.Fatalf("%+v became %+v, %v", rep, again, err)
		}
	})
}
