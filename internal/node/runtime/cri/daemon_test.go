package cri

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	internalapi "k8s.io/cri-api/pkg/apis"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// daemon is a container runtime in memory. It has the image "there".
type daemon struct {
	internalapi.RuntimeService // what is not below is not called
	bin, conf                  string
	netns                      string // of every sandbox

	mu         sync.Mutex
	sandboxes  map[string]bool
	containers map[string]*api.ContainerStatus
	pulled     []string
}

func (d *daemon) Close(context.Context) error { return nil }

func (d *daemon) Status(context.Context, bool) (*api.StatusResponse, error) {
	_, err := os.Stat(filepath.Join(d.conf, confFile))
	return &api.StatusResponse{
		Status: &api.RuntimeStatus{Conditions: []*api.RuntimeCondition{{Type: api.NetworkReady, Status: err == nil, Message: "cni config uninitialized"}}},
		Info:   map[string]string{"config": fmt.Sprintf(`{"cni":{"binDir":%q,"confDir":%q}}`, d.bin, d.conf)},
	}, nil
}

func (d *daemon) RunPodSandbox(_ context.Context, c *api.PodSandboxConfig, _ string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sandboxes[c.Metadata.Uid] = true
	return c.Metadata.Uid, nil
}

func (d *daemon) StopPodSandbox(context.Context, string) error { return nil }

func (d *daemon) RemovePodSandbox(_ context.Context, id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sandboxes, id)
	return nil
}

func (d *daemon) PodSandboxStatus(context.Context, string, bool) (*api.PodSandboxStatusResponse, error) {
	return &api.PodSandboxStatusResponse{Info: map[string]string{
		"info": fmt.Sprintf(`{"runtimeSpec":{"linux":{"namespaces":[{"type":"pid"},{"type":"network","path":%q}]}}}`, d.netns)}}, nil
}

func (d *daemon) CreateContainer(_ context.Context, sandbox string, c *api.ContainerConfig, _ *api.PodSandboxConfig) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := sandbox + "-" + c.Metadata.Name
	d.containers[id] = &api.ContainerStatus{Id: id, Metadata: c.Metadata, Labels: maps.Clone(c.Labels), Image: c.Image}
	return id, nil
}

func (d *daemon) StartContainer(_ context.Context, id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.containers[id].State, d.containers[id].StartedAt = api.ContainerState_CONTAINER_RUNNING, time.Now().UnixNano()
	return nil
}

func (d *daemon) StopContainer(_ context.Context, id string, seconds int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.containers[id]
	c.State, c.FinishedAt, c.ExitCode = api.ContainerState_CONTAINER_EXITED, time.Now().UnixNano(), int32(100+seconds)
	return nil
}

func (d *daemon) ContainerStatus(_ context.Context, id string, _ bool) (*api.ContainerStatusResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.containers[id] == nil {
		return nil, fmt.Errorf("no container %s", id)
	}
	return &api.ContainerStatusResponse{Status: d.containers[id]}, nil
}

func (d *daemon) ListContainers(_ context.Context, f *api.ContainerFilter) (out []*api.Container, _ error) {
	d.mu.Lock()
	defer d.mu.Unlock()
next:
	for id, c := range d.containers {
		for k, v := range f.LabelSelector {
			if c.Labels[k] != v {
				continue next
			}
		}
		out = append(out, &api.Container{Id: id, State: c.State, Labels: c.Labels})
	}
	return out, nil
}

func (d *daemon) ImageStatus(_ context.Context, i *api.ImageSpec, _ bool) (*api.ImageStatusResponse, error) {
	if i.Image != "there" && len(d.pulled) == 0 {
		return &api.ImageStatusResponse{}, nil
	}
	return &api.ImageStatusResponse{Image: &api.Image{Id: "sha256:" + i.Image}}, nil
}

func (d *daemon) PullImage(_ context.Context, i *api.ImageSpec, _ *api.AuthConfig, _ *api.PodSandboxConfig) (string, error) {
	d.pulled = append(d.pulled, i.Image)
	return "sha256:" + i.Image, nil
}

func (d *daemon) ListImages(context.Context, *api.ImageFilter) ([]*api.Image, error) { return nil, nil }
func (d *daemon) RemoveImage(context.Context, *api.ImageSpec) error                  { return nil }
func (d *daemon) ImageFsInfo(context.Context) (*api.ImageFsInfoResponse, error)      { return nil, nil }
