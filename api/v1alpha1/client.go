package v1alpha1

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// Client reads and writes the resources of this package. It is safe for
// concurrent use.
//
// +k8s:deepcopy-gen=false
type Client struct {
	pools      *gentype.ClientWithList[*IPPool, *IPPoolList]
	announcers *gentype.ClientWithList[*Announcer, *AnnouncerList]
}

// NewClient makes a client from the configuration of any other.
func NewClient(config *rest.Config) (*Client, error) {
	c := rest.CopyConfig(config)
	c.GroupVersion = &GroupVersion
	c.APIPath = "/apis"
	// Custom resources are served as JSON only.
	c.ContentType, c.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	c.NegotiatedSerializer = codecs.WithoutConversion()
	if c.UserAgent == "" {
		c.UserAgent = rest.DefaultKubernetesUserAgent()
	}
	r, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", GroupVersion, err)
	}
	params := runtime.NewParameterCodec(Scheme)
	return &Client{
		pools: gentype.NewClientWithList[*IPPool, *IPPoolList]("ippools", r, params, "",
			func() *IPPool { return &IPPool{} }, func() *IPPoolList { return &IPPoolList{} }),
		announcers: gentype.NewClientWithList[*Announcer, *AnnouncerList]("announcers", r, params, "",
			func() *Announcer { return &Announcer{} }, func() *AnnouncerList { return &AnnouncerList{} }),
	}, nil
}

// IPPools is the client of IPPools.
func (c *Client) IPPools() *gentype.ClientWithList[*IPPool, *IPPoolList] { return c.pools }

// Announcers is the client of Announcers.
func (c *Client) Announcers() *gentype.ClientWithList[*Announcer, *AnnouncerList] {
	return c.announcers
}

// IPPoolInformer makes an informer of all IPPools; the caller runs it.
func (c *Client) IPPoolInformer() cache.SharedIndexInformer {
	return informer[*IPPoolList](c.pools, &IPPool{})
}

// AnnouncerInformer makes an informer of all Announcers; the caller runs it.
func (c *Client) AnnouncerInformer() cache.SharedIndexInformer {
	return informer[*AnnouncerList](c.announcers, &Announcer{})
}

type listWatcher[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

func informer[L runtime.Object](lw listWatcher[L], example runtime.Object) cache.SharedIndexInformer {
	return cache.NewSharedIndexInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return lw.List(ctx, o)
		},
		WatchFuncWithContext: lw.Watch,
	}, example, 0, cache.Indexers{})
}
