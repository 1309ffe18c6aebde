package apiserver_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/testenv/apitest"
)

// testWebhook has a webhook refuse what is named "no".
func testWebhook(t *testing.T, s *apiserver.Server) {
	c := apitest.Client(t, s, apiserver.Admin())
	ns := namespace(t, c)
	hook := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review struct {
			Request struct{ UID, Name string }
		}
		_ = json.NewDecoder(r.Body).Decode(&review)
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":%q,"allowed":%v,"status":{"message":"the hook says no"}}}`,
			review.Request.UID, review.Request.Name != "no")
	}))
	defer hook.Close()
	configuration := &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "hook"},
		Webhooks: []admissionregistrationv1.ValidatingWebhook{{
			Name:                    "hook.example.com",
			ClientConfig:            admissionregistrationv1.WebhookClientConfig{URL: &hook.URL, CABundle: pemOf(hook)},
			NamespaceSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": ns}},
			SideEffects:             ptr.To(admissionregistrationv1.SideEffectClassNone),
			AdmissionReviewVersions: []string{"v1"},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
			}},
		}},
	}
	hooks := c.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	if _, err := hooks.Create(t.Context(), configuration, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	defer hooks.Delete(context.Background(), "hook", metav1.DeleteOptions{})
	eventually(t, "refusal by the webhook", func(ctx context.Context) (bool, error) {
		_, err := c.CoreV1().ConfigMaps(ns).Create(ctx, configMap("no"), metav1.CreateOptions{})
		if err == nil {
			return false, c.CoreV1().ConfigMaps(ns).Delete(ctx, "no", metav1.DeleteOptions{})
		}
		if !strings.Contains(err.Error(), "the hook says no") {
			return false, err
		}
		return true, nil
	})
	create(t, c, ns, configMap("yes"))
}

// testPolicy has a CEL policy refuse what it should.
func testPolicy(t *testing.T, s *apiserver.Server) {
	c := apitest.Client(t, s, apiserver.Admin())
	ns := namespace(t, c)
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": ns}}
	policies, bindings := c.AdmissionregistrationV1().ValidatingAdmissionPolicies(), c.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings()
	_, err := policies.Create(t.Context(), &admissionregistrationv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "short"},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
			MatchConstraints: &admissionregistrationv1.MatchResources{ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{
				RuleWithOperations: admissionregistrationv1.RuleWithOperations{
					Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
					Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
				},
			}}},
			Validations: []admissionregistrationv1.Validation{{Expression: "size(object.metadata.name) < 5", Message: "the name is too long"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = bindings.Create(t.Context(), &admissionregistrationv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "short"},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: "short", ValidationActions: []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny},
			MatchResources: &admissionregistrationv1.MatchResources{NamespaceSelector: selector},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "refusal by the policy", func(ctx context.Context) (bool, error) {
		_, err := c.CoreV1().ConfigMaps(ns).Create(ctx, configMap("much-too-long"), metav1.CreateOptions{})
		if err == nil {
			return false, c.CoreV1().ConfigMaps(ns).Delete(ctx, "much-too-long", metav1.DeleteOptions{})
		}
		if !strings.Contains(err.Error(), "the name is too long") {
			return false, err
		}
		return true, nil
	})
	create(t, c, ns, configMap("ok"))
}

// testMutatingPolicy has a CEL policy change what is created.
func testMutatingPolicy(t *testing.T, s *apiserver.Server) {
	c := apitest.Client(t, s, apiserver.Admin())
	ns := namespace(t, c)
	policies, bindings := c.AdmissionregistrationV1().MutatingAdmissionPolicies(), c.AdmissionregistrationV1().MutatingAdmissionPolicyBindings()
	_, err := policies.Create(t.Context(), &admissionregistrationv1.MutatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "label"},
		Spec: admissionregistrationv1.MutatingAdmissionPolicySpec{
			ReinvocationPolicy: admissionregistrationv1.NeverReinvocationPolicy,
			MatchConstraints: &admissionregistrationv1.MatchResources{ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{
				RuleWithOperations: admissionregistrationv1.RuleWithOperations{
					Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
					Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
				},
			}}},
			Mutations: []admissionregistrationv1.Mutation{{
				PatchType:          admissionregistrationv1.PatchTypeApplyConfiguration,
				ApplyConfiguration: &admissionregistrationv1.ApplyConfiguration{Expression: `Object{metadata: Object.metadata{labels: {"made": "here"}}}`},
			}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = bindings.Create(t.Context(), &admissionregistrationv1.MutatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "label"},
		Spec: admissionregistrationv1.MutatingAdmissionPolicyBindingSpec{
			PolicyName: "label",
			MatchResources: &admissionregistrationv1.MatchResources{
				NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": ns}},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	eventually(t, "the policy's label", func(ctx context.Context) (bool, error) {
		n++
		cm, err := c.CoreV1().ConfigMaps(ns).Create(ctx, configMap(fmt.Sprintf("c-%d", n)), metav1.CreateOptions{})
		if err != nil {
			return false, err
		}
		return cm.Labels["made"] == "here", fmt.Errorf("labels %v", cm.Labels)
	})
}

// TestWebhooksOfServices: webhooks that are named by a Service are dialled at its endpoints; one changes what the other then sees.
func TestWebhooksOfServices(t *testing.T) {
	if !onMachine(t) {
		return
	}
	s := apitest.Start(t)
	c := apitest.Client(t, s, apiserver.Admin())
	ctx, ns := t.Context(), namespace(t, c)
	cert, ca := servingCert(t, "hooks", ns)
	type review struct {
		Request struct {
			UID      string
			UserInfo struct{ Username string }
			Object   corev1.ConfigMap
		}
	}
	hook := func(answer func(r review) string) http.HandlerFunc {
		return func(w http.ResponseWriter, req *http.Request) {
			var r review
			if err := json.NewDecoder(req.Body).Decode(&r); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":%q,%s}}`, r.Request.UID, answer(r))
		}
	}
	mux := http.NewServeMux()
	mux.Handle("/change", hook(func(r review) string {
		patch, _ := json.Marshal([]map[string]any{{"op": "add", "path": "/data", "value": map[string]string{"by": r.Request.UserInfo.Username}}})
		encoded, _ := json.Marshal(patch) // base64
		return `"allowed":true,"patchType":"JSONPatch","warnings":["it was changed"],"patch":` + string(encoded)
	}))
	mux.Handle("/judge", hook(func(r review) string {
		return fmt.Sprintf(`"allowed":%v,"status":{"code":422,"message":"the judge says no to %s"}`, r.Request.Object.Name != "no", r.Request.Object.Data["by"])
	}))
	server, port := listenBackend(t, mux)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	server.StartTLS()
	createPod(t, c, ns, "hooks")
	createService(t, c, ns, "hooks", "https")
	createSlice(t, c, ns, "hooks", "hooks", true, map[string]int32{"https": port})

	client := func(path string) admissionregistrationv1.WebhookClientConfig {
		return admissionregistrationv1.WebhookClientConfig{CABundle: ca, Service: &admissionregistrationv1.ServiceReference{
			Namespace: ns, Name: "hooks", Path: &path, Port: ptr.To[int32](80),
		}}
	}
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": ns}}
	rules := []admissionregistrationv1.RuleWithOperations{{
		Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
		Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
	}}
	none := ptr.To(admissionregistrationv1.SideEffectClassNone)
	_, err1 := c.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(ctx, &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "change"},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: "change.example.com", ClientConfig: client("/change"), NamespaceSelector: selector, Rules: rules,
			SideEffects: none, AdmissionReviewVersions: []string{"v1"},
		}},
	}, metav1.CreateOptions{})
	_, err2 := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(ctx, &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "judge"},
		Webhooks: []admissionregistrationv1.ValidatingWebhook{{
			Name: "judge.example.com", ClientConfig: client("/judge"), NamespaceSelector: selector, Rules: rules,
			SideEffects: none, AdmissionReviewVersions: []string{"v1"},
		}},
	}, metav1.CreateOptions{})
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	admin := apiserver.Admin().User
	eventually(t, "both webhooks", func(ctx context.Context) (bool, error) {
		cm, err := c.CoreV1().ConfigMaps(ns).Create(ctx, configMap("no"), metav1.CreateOptions{})
		if err == nil {
			_ = c.CoreV1().ConfigMaps(ns).Delete(ctx, cm.Name, metav1.DeleteOptions{})
			return false, nil
		}
		return strings.Contains(err.Error(), "the judge says no to "+admin) && apierrors.ReasonForError(err) != metav1.StatusReasonInternalError, err
	})
	if cm := create(t, c, ns, configMap("yes")); cm.Data["by"] != admin {
		t.Errorf("stored with %v, want what the webhook put there", cm.Data)
	}
	// A webhook that cannot be asked is one that says no.
	server.Close()
	if _, err := c.CoreV1().ConfigMaps(ns).Create(ctx, configMap("later"), metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), `failed calling webhook "change.example.com"`) {
		t.Errorf("without the server: %v", err)
	}
}
