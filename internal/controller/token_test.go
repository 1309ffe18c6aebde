package controller

import (
	"errors"
	"fmt"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// TestServiceAccountToken: a Secret that asks for the token of a ServiceAccount gets one that the API server
// believes, and goes with the ServiceAccount.
func TestServiceAccountToken(t *testing.T) {
	c := startCluster(t)
	ctx := t.Context()
	accounts, secrets := c.client.CoreV1().ServiceAccounts("default"), c.client.CoreV1().Secrets("default")
	_, err := accounts.Create(ctx, &v1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "robot"}}, metav1.CreateOptions{})
	c.must(err)
	_, err = secrets.Create(ctx, &v1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "robot-token", Annotations: map[string]string{v1.ServiceAccountNameKey: "robot"}},
		Type:       v1.SecretTypeServiceAccountToken,
	}, metav1.CreateOptions{})
	c.must(err)
	var data map[string][]byte
	c.eventually("the token", func() error {
		s, err := secrets.Get(ctx, "robot-token", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if data = s.Data; len(data[v1.ServiceAccountTokenKey]) == 0 {
			return errors.New("it is not there")
		}
		return nil
	})
	if string(data[v1.ServiceAccountNamespaceKey]) != "default" || string(data[v1.ServiceAccountRootCAKey]) != string(c.config.CAData) {
		t.Errorf("namespace %q, authority %q", data[v1.ServiceAccountNamespaceKey], data[v1.ServiceAccountRootCAKey])
	}
	robot, err := kubernetes.NewForConfig(&rest.Config{
		Host: c.config.Host, BearerToken: string(data[v1.ServiceAccountTokenKey]), TLSClientConfig: rest.TLSClientConfig{CAData: data[v1.ServiceAccountRootCAKey]},
	})
	c.must(err)
	c.eventually("the token's user", func() error {
		me, err := robot.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if err == nil && me.Status.UserInfo.Username != "system:serviceaccount:default:robot" {
			err = fmt.Errorf("it is %q", me.Status.UserInfo.Username)
		}
		return err
	})
	c.must(accounts.Delete(ctx, "robot", metav1.DeleteOptions{}))
	c.eventually("the end of the token", func() error {
		if _, err := secrets.Get(ctx, "robot-token", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("the Secret is still there (%v)", err)
		}
		_, err := robot.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if !apierrors.IsUnauthorized(err) {
			return fmt.Errorf("the token is still good (%v)", err)
		}
		return nil
	})
}
