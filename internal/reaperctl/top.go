package reaperctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/mattn/go-runewidth"
	"github.com/spf13/cobra"

	"github.com/reaper-shim/reaper/internal/node"
)

// sortKey is a column that top can sort by.
type sortKey struct {
	key, name string
	less      func(a, b Task) int
}

// sortKeys are in the order that the key "s" goes through them.
var sortKeys = []sortKey{
	{"z", "zombies", func(a, b Task) int { return cmp.Compare(b.zombies(), a.zombies()) }},
	{"r", "reaped", func(a, b Task) int { return cmp.Compare(b.reaped(), a.reaped()) }},
	{"o", "oldest", func(a, b Task) int { return cmp.Compare(b.oldest(), a.oldest()) }},
	{"p", "PIDs", func(a, b Task) int { return cmp.Compare(b.PIDs.Current, a.PIDs.Current) }},
	{"n", "name", func(a, b Task) int { return cmp.Compare(a.Name, b.Name) }},
}

func (task Task) zombies() uint32 {
	if task.Reaper == nil {
		return 0
	}
	return task.Reaper.Zombies.Total
}

func (task Task) reaped() uint64 {
	if task.Reaper == nil {
		return 0
	}
	return task.Reaper.Reaped.Total
}

func (task Task) oldest() float64 {
	if task.Reaper == nil {
		return 0
	}
	return task.Reaper.OldestSeconds
}

func (a *app) topCommand() *cobra.Command {
	every := time.Second
	cmd := &cobra.Command{
		Use:   "top",
		Short: "ps, live: sortable, and driven by the keyboard",
		Long: `Shows what ps shows and renews it. Needs a terminal.

  up, down, j, k, page up, page down   move
  s                                    sort by the next column; z zombies, r reaped, o oldest, p PIDs, n name
  a                                    all tasks, or only those of the reaper runtime
  space                                stop and go on
  q, escape                            leave`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !a.tty {
				return errors.New("top needs a terminal; ps prints the same once")
			}
			if every < 100*time.Millisecond {
				return fmt.Errorf("--every %v: want 100ms or more", every)
			}
			n, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			defer n.Close()
			m := newTop(cmd.Context(), n, every, a.color)
			_, err = tea.NewProgram(m, tea.WithContext(cmd.Context()), tea.WithOutput(a.out), tea.WithInput(os.Stdin)).Run()
			if errors.Is(err, tea.ErrProgramKilled) && cmd.Context().Err() != nil {
				return nil
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&every, "every", every, "renew that `often`")
	return cmd
}

// snapshotter is the part of a node that top uses.
type snapshotter interface {
	Snapshot(ctx context.Context) ([]*node.Task, error)
}

// top is the model of the screen (bubbletea: Update answers what happens, View draws).
type top struct {
	ctx    context.Context //nolint:containedctx // bubbletea has no other way to hand it to commands
	node   snapshotter
	every  time.Duration
	color  bool
	width  int
	height int

	tasks  []Task // as they came
	err    error
	at     time.Time
	sort   int // index in sortKeys
	ours   bool
	paused bool
	cursor int
	first  int // line of the table at the top of the screen
}

func newTop(ctx context.Context, n snapshotter, every time.Duration, color bool) *top {
	return &top{ctx: ctx, node: n, every: every, color: color, width: 80, height: 24}
}

type (
	tick   time.Time
	answer struct {
		tasks []Task
		err   error
		at    time.Time
	}
)

// Init asks for the first time.
func (m *top) Init() tea.Cmd { return m.ask }

func (m *top) ask() tea.Msg {
	tasks, err := m.node.Snapshot(m.ctx)
	a := answer{err: err, at: time.Now()}
	for _, t := range tasks {
		a.tasks = append(a.tasks, taskOf(t))
	}
	return a
}

// Update answers keys, sizes and what the node says.
func (m *top) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		if msg.Width > 0 && msg.Height > 0 { // a terminal that does not know has 0
			m.width, m.height = msg.Width, msg.Height
		}
	case answer:
		m.err, m.at = msg.err, msg.at
		if msg.err == nil {
			m.tasks = msg.tasks
		}
		m.move(0)
		return m, tea.Tick(m.every, func(t time.Time) tea.Msg { return tick(t) })
	case tick:
		if m.paused {
			return m, tea.Tick(m.every, func(t time.Time) tea.Msg { return tick(t) })
		}
		return m, m.ask
	case tea.KeyPressMsg:
		return m, m.key(msg.String())
	}
	return m, nil
}

func (m *top) key(key string) tea.Cmd {
	switch key {
	case "q", "esc", "ctrl+c":
		return tea.Quit
	case "up", "k":
		m.move(-1)
	case "down", "j":
		m.move(1)
	case "pgup":
		m.move(-m.rows())
	case "pgdown":
		m.move(m.rows())
	case "home", "g":
		m.move(-len(m.tasks))
	case "end", "G":
		m.move(len(m.tasks))
	case "s":
		m.sort = (m.sort + 1) % len(sortKeys)
	case "a":
		m.ours = !m.ours
		m.move(0)
	case "space":
		m.paused = !m.paused
	default:
		if i := slices.IndexFunc(sortKeys, func(k sortKey) bool { return k.key == key }); i >= 0 {
			m.sort = i
		}
	}
	return nil
}

// shown returns the tasks that are to be seen, sorted.
func (m *top) shown() []Task {
	tasks := slices.DeleteFunc(slices.Clone(m.tasks), func(t Task) bool { return m.ours && t.Reaper == nil })
	slices.SortStableFunc(tasks, sortKeys[m.sort].less)
	return tasks
}

const keysLine = "↑↓ move  s sort  a all/reaper  space stop  q leave"

// frame is how many lines of the screen are not rows: title, column titles, the line of keys.
const frame = 3

func (m *top) rows() int { return max(m.height-frame, 1) }

// move moves the cursor within the table, and the table so that the cursor stays on the screen.
func (m *top) move(by int) {
	n := len(m.shown())
	m.cursor = max(min(m.cursor+by, n-1), 0)
	m.first = min(max(m.first, m.cursor-m.rows()+1), m.cursor)
}

// View draws the screen.
func (m *top) View() tea.View {
	v := tea.NewView(m.screen())
	v.AltScreen = true
	return v
}

func (m *top) screen() string {
	shown := m.shown()
	var zombies, reaped uint64
	ours := 0
	for _, t := range m.tasks {
		zombies += uint64(t.zombies())
		reaped += t.reaped()
		if t.Reaper != nil {
			ours++
		}
	}
	title := fmt.Sprintf("%d tasks, %d of the reaper runtime; %d zombies, %d reaped; by %s", len(m.tasks), ours, zombies, reaped, sortKeys[m.sort].name)
	switch {
	case m.err != nil:
		title = safe(m.err.Error())
	case m.at.IsZero():
		title = "asking containerd"
	case m.paused:
		title += "; stopped at " + m.at.Format("15:04:05")
	default:
		title += "; " + m.at.Format("15:04:05")
	}
	lines := []string{m.fit(title)}
	t := TaskList{Tasks: shown}.table(false)
	// Without colours first: a line is cut where the screen ends, and never within an escape sequence.
	plainLines, colored := t.lines(false), t.lines(m.color)
	for i := range plainLines {
		line := colored[i]
		if runewidth.StringWidth(plainLines[i]) > m.width {
			line = m.fit(plainLines[i])
		}
		if len(shown) > 0 && i-1 == m.cursor && m.color {
			line = style("7").paint(m.fit(plainLines[i]))
		}
		if i == 0 || i-1 >= m.first && i-1 < m.first+m.rows() {
			lines = append(lines, line)
		}
	}
	for len(lines) < m.height-1 {
		lines = append(lines, "")
	}
	return strings.Join(append(lines, m.fit(keysLine)), "\n")
}

func (m *top) fit(line string) string { return runewidth.Truncate(line, m.width, "…") }
