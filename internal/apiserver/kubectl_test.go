package apiserver_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/testenv/apitest"
)

// kubectl is kubectl with a kubeconfig of its own.
type kubectl struct {
	t      *testing.T
	config string
	// program is a kubectl to run; empty means this binary, which is one too.
	program string
}

// run runs kubectl with input on its standard input and returns what it printed
// on both outputs, and whether it succeeded.
func (k kubectl) run(input string, args ...string) (string, bool) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(k.t.Context(), 2*limit)
	defer cancel()
	program := k.program
	if program == "" {
		program = os.Args[0]
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+roleKubectl, "KUBECONFIG="+k.config, "HOME="+filepath.Dir(k.config), "KUBE_EDITOR=sed -i s/8080/9090/")
	cmd.Stdin = strings.NewReader(input)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if ctx.Err() != nil {
		k.t.Fatalf("kubectl %v: not done within %v: %s", args, 2*limit, out.String())
	}
	return out.String(), err == nil
}

// want runs kubectl, which has to succeed and print something that matches.
func (k kubectl) want(pattern, input string, args ...string) string {
	k.t.Helper()
	out, ok := k.run(input, args...)
	if !ok || !regexp.MustCompile(pattern).MatchString(out) {
		k.t.Errorf("kubectl %s: success %v, want output like %q:\n%s", strings.Join(args, " "), ok, pattern, out)
	}
	return out
}

// refuse runs kubectl, which has to fail and say something that matches.
func (k kubectl) refuse(pattern, input string, args ...string) {
	k.t.Helper()
	out, ok := k.run(input, args...)
	if ok || !regexp.MustCompile(pattern).MatchString(out) {
		k.t.Errorf("kubectl %s: success %v, want a failure like %q:\n%s", strings.Join(args, " "), ok, pattern, out)
	}
}

// TestKubectl does with kubectl what people do: with the one of this
// Kubernetes version, as "fairway kubectl" is, and with the machine's if it has one.
func TestKubectl(t *testing.T) {
	t.Parallel()
	s := apitest.Start(t)
	kubeconfig, err := s.KubeconfigFor(apiserver.Admin(), "")
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(config, kubeconfig, 0o600); err != nil {
		t.Fatal(err)
	}
	programs := map[string]string{"library": ""}
	if path, err := exec.LookPath("kubectl"); err == nil {
		programs["machine"] = path
	}
	for name, program := range programs {
		t.Run(name, func(t *testing.T) {
			k := kubectl{t, config, program}
			k.want("namespace/"+name+" created", "", "create", "namespace", name)
			k.want("", "", "config", "set-context", "--current", "--namespace="+name)
			testKubectl(k, name)
		})
	}
}

const web = `
apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: web}}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
`

func testKubectl(k kubectl, name string) {
	// Apply, get, describe, explain.
	k.want("service/web created", web, "apply", "-f", "-")
	k.want("service/web unchanged", web, "apply", "-f", "-")
	k.want(`^NAME +TYPE +CLUSTER-IP +EXTERNAL-IP +PORT\(S\) +AGE\nweb +ClusterIP +10\.96\.\d+\.\d+ +<none> +80/TCP +\d+s\n$`, "", "get", "services")
	k.want(`SELECTOR\nweb .* app=web\n$`, "", "get", "services", "-o", "wide")
	k.want(`(?s)Name: +web\n.*Selector: +app=web\n.*IP Families: +IPv4\n.*TargetPort: +8080/TCP\n.*Session Affinity: +None`, "", "describe", "service", "web")
	k.want(`(?s)KIND: +Service.*trafficDistribution\s+<string>`, "", "explain", "service.spec")
	k.want(`FIELD: replicas <integer>`, "", "explain", "deployment.spec.replicas")
	// Validation by the server.
	k.refuse(`spec\.ports\[0\]\.port: Invalid value: 99999`, strings.Replace(web, "80,", "99999,", 1), "apply", "-f", "-")
	k.refuse(`unknown field "spec\.colour"`, web+"  colour: red\n", "apply", "-f", "-")

	// Edit and patches of all types.
	k.want("service/web edited", "", "edit", "service", "web")
	k.want("^9090$", "", "get", "service", "web", "-o", "jsonpath={.spec.ports[0].targetPort}")
	k.want("patched", "", "patch", "service", "web", "--type=strategic", "-p", `{"spec":{"ports":[{"port":443,"name":"https"}]}}`)
	k.want("patched", "", "patch", "service", "web", "--type=merge", "-p", `{"metadata":{"annotations":{"a":"b"}}}`)
	k.want("patched", "", "patch", "service", "web", "--type=json", "-p", `[{"op":"remove","path":"/spec/ports/0"}]`)
	k.want("^80$", "", "get", "service", "web", "-o", "jsonpath={.spec.ports[*].port}")
	k.want("patched", "", "patch", "service", "web", "--subresource=status", "--type=merge", "-p", `{"status":{"conditions":[{"type":"Seen","status":"True","reason":"Test","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`)
	k.want("condition met", "", "wait", "service/web", "--for=condition=Seen", "--timeout=30s")

	// Server-side apply with a conflict, dry run, diff.
	applied := strings.Replace(web, "name: web,", "name: applied,", 1)
	k.want("serverside-applied", applied, "apply", "--server-side", "--field-manager=one", "-f", "-")
	changed := strings.Replace(applied, "8080", "7070", 1)
	k.refuse(`(?s)conflict with "one".*targetPort`, changed, "apply", "--server-side", "--field-manager=two", "-f", "-")
	k.refuse(`(?s)-    targetPort: 8080.*\+    targetPort: 7070`, changed, "diff", "--server-side", "--force-conflicts", "-f", "-")
	k.want("serverside-applied", changed, "apply", "--server-side", "--field-manager=two", "--force-conflicts", "-f", "-")
	k.want(`dry run`, "", "delete", "service", "applied", "--dry-run=server")
	k.want("applied", "", "get", "service", "applied", "-o", "name")

	// Wait, watch, delete with a finalizer.
	k.want("condition met", "", "wait", "service/web", "--for=jsonpath={.spec.type}=ClusterIP", "--timeout=30s")
	k.want("configmap/held created", "", "create", "configmap", "held", "--from-literal=a=b")
	k.want("patched", "", "patch", "configmap", "held", "--type=merge", "-p", `{"metadata":{"finalizers":["example.com/hold"]}}`)
	k.want("deleted", "", "delete", "configmap", "held", "--wait=false")
	k.want("T.*Z$", "", "get", "configmap", "held", "-o", "jsonpath={.metadata.deletionTimestamp}")
	watching := make(chan string, 1)
	go func() {
		out, _ := k.run("", "get", "configmaps", "--watch", "--output-watch-events", "--request-timeout=8s")
		watching <- out
	}()
	time.Sleep(time.Second) // no more than a chance for the watch to come first; it sees both either way
	k.want("patched", "", "patch", "configmap", "held", "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
	k.want("", "", "wait", "configmap/held", "--for=delete", "--timeout=30s")
	if out := <-watching; !regexp.MustCompile(`EVENT +NAME +DATA +AGE\n`).MatchString(out) {
		k.t.Errorf("watch:\n%s", out)
	}

	// Workloads, chunks, selectors, logs that no node has.
	k.want("deployment.apps/app created", "", "create", "deployment", "app", "--image=host", "--replicas=2")
	k.want(`^NAME +READY +UP-TO-DATE +AVAILABLE +AGE\napp +0/2 +0 +0 +\d+s\n$`, "", "get", "deployments")
	k.want("scaled", "", "scale", "deployment", "app", "--replicas=3")
	k.want("^service/web\n$", "", "get", "services", "-l", "app=web", "--field-selector=metadata.name=web", "-o", "name", "--chunk-size=1")
	k.want("clusterrole.rbac", "", "get", "clusterroles", "--chunk-size=7", "-o", "name")
	k.refuse(`pods "none" not found`, "", "logs", "none")
	k.want("^yes\n", "", "auth", "can-i", "delete", "services")
	k.want("^no\n|no$", "", "auth", "whoami", "-o", "jsonpath=no") // whoami is there
	k.want(`^ey`, "", "create", "token", defaultAccount(k))

	// A custom resource.
	group := name + ".example.com"
	k.want("created", crdYAML(group), "apply", "-f", "-")
	k.want("condition met", "", "wait", "crd/boats."+group, "--for=condition=Established", "--timeout=60s")
	eventually(k.t, "boats in kubectl", func(context.Context) (bool, error) {
		out, ok := k.run(boatYAML(group), "apply", "-f", "-")
		return ok, fmt.Errorf("%s", out)
	})
	k.want(`^NAME +MASTS\nfirst +3\n$`, "", "get", "boats."+group)
	k.refuse("should be less than or equal to 5", strings.Replace(boatYAML(group), "3", "6", 1), "apply", "-f", "-")
	eventually(k.t, "boats explained", func(context.Context) (bool, error) {
		out, ok := k.run("", "explain", "boats."+group+".spec")
		return ok && strings.Contains(out, "masts"), fmt.Errorf("%s", out)
	})
	k.want("deleted", "", "delete", "boat."+group, "first")
	k.want("deleted", "", "delete", "crd", "boats."+group)
}

// defaultAccount makes a ServiceAccount and returns its name.
func defaultAccount(k kubectl) string {
	k.t.Helper()
	k.want("created", "", "create", "serviceaccount", "robot")
	return "robot"
}

func crdYAML(group string) string {
	return `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.` + group + `}
spec:
  group: ` + group + `
  scope: Namespaced
  names: {plural: boats, singular: boat, kind: Boat}
  versions:
  - name: v1
    served: true
    storage: true
    additionalPrinterColumns: [{name: Masts, type: integer, jsonPath: .spec.masts}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {masts: {type: integer, maximum: 5}}}
`
}

func boatYAML(group string) string {
	return `
apiVersion: ` + group + `/v1
kind: Boat
metadata: {name: first}
spec: {masts: 3}
`
}
