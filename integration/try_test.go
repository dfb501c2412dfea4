package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

func TestTry(t *testing.T) {
	ctx := t.Context()
	e, err := harness.New("/work/main/.cache/bin")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	reg, err := e.StartRegistry()
	if err != nil {
		t.Fatal(err)
	}
	link, err := e.StartLink(reg, 200e6, 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.AllowHTTP(link.Addr); err != nil {
		t.Fatal(err)
	}
	image, err := harness.BuildImage(ctx, e, "/work/main/integration/images/build.sh", "/work/main/.cache/images", "numpy", "/work/main/integration/images/numpy", "python3", "python3-numpy")
	if err != nil {
		t.Fatal(err)
	}
	image.Cmd = []string{"python3", "/app/main.py"}
	if _, err := image.Push(ctx, reg+"/bench/numpy:latest"); err != nil {
		t.Fatal(err)
	}
	out, err := e.Run(ctx, "lacunactl", "index", "create", "--push", "--store", e.Path("idx"), "--plain-http", reg+"/bench/numpy:latest")
	fmt.Println(out)
	if err != nil {
		t.Fatal(err)
	}
	d, err := e.StartDaemon("settle.enabled = false")
	if err != nil {
		t.Fatal(err)
	}
	c, err := e.StartContainerd("lacuna")
	if err != nil {
		t.Fatal(err)
	}
	for _, sn := range []string{"lacuna", "overlayfs"} {
		s, err := c.PullAndRun(ctx, link, sn, link.Addr+"/bench/numpy:latest", "x"+sn)
		fmt.Println(sn, s, err)
		if sn == "lacuna" {
			fmt.Println(d.Log())
		}
	}
	st, _ := e.Lacunactl(ctx, "layers")
	fmt.Println(st)
	st, _ = e.Lacunactl(ctx, "status")
	fmt.Println(st)
}
