package pngtext

import (
	"bytes"
	"image"
	"image/png"
	"testing"
)

func TestSetGet(t *testing.T) {
	var plain bytes.Buffer
	if err := png.Encode(&plain, image.NewGray(image.Rect(0, 0, 3, 2))); err != nil {
		t.Fatal(err)
	}
	const text = `["Pod","Container"]`
	marked, err := Set(plain.Bytes(), text)
	if err != nil {
		t.Fatal(err)
	}
	// The decoder checks the CRC of every chunk.
	if img, err := png.Decode(bytes.NewReader(marked)); err != nil || img.Bounds().Dx() != 3 {
		t.Errorf("the picture: %v", err)
	}
	if got, err := Get(marked); err != nil || got != text {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := Get(plain.Bytes()); err != nil || got != "" {
		t.Errorf("without a text: %q, %v", got, err)
	}
	if got, err := Get(marked[:40]); err != nil || got != "" {
		t.Errorf("cut short: %q, %v", got, err)
	}
	for _, data := range []string{"", "GIF89a"} {
		if _, err := Get([]byte(data)); err == nil {
			t.Errorf("Get of %q: no error", data)
		}
		if _, err := Set([]byte(data), text); err == nil {
			t.Errorf("Set of %q: no error", data)
		}
	}
}
