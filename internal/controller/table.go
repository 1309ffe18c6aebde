package controller

import (
	"context"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/scale"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
	"k8s.io/kubernetes/pkg/controller/clusterroleaggregation"
	"k8s.io/kubernetes/pkg/controller/cronjob"
	"k8s.io/kubernetes/pkg/controller/daemon"
	"k8s.io/kubernetes/pkg/controller/deployment"
	"k8s.io/kubernetes/pkg/controller/disruption"
	"k8s.io/kubernetes/pkg/controller/job"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle"
	"k8s.io/kubernetes/pkg/controller/replicaset"
	"k8s.io/kubernetes/pkg/controller/replication"
	"k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/controller/statefulset"
	"k8s.io/kubernetes/pkg/controller/tainteviction"
	"k8s.io/kubernetes/pkg/controller/ttl"
	"k8s.io/kubernetes/pkg/controller/ttlafterfinished"
	"k8s.io/kubernetes/pkg/controller/volume/pvcprotection"
	"k8s.io/kubernetes/pkg/controller/volume/pvprotection"
	tokens "k8s.io/kubernetes/pkg/serviceaccount"

	"fairway.dev/fairway/internal/controller/podgc"
)

// row is one of upstream's controllers.
type row struct {
	name    string // upstream's, without the ending -controller
	account string // the ServiceAccount in kube-system whose rights it has; empty: ManagerUser has them
	// build makes the controller and hooks it into the caches, which are
	// started afterwards, and returns what runs it; nil if these options have
	// no use for it.
	build func(context.Context, *env) (func(context.Context), error)
}

// table is all of upstream's controllers that run here (and podgc, which does
// as upstream's does). Not among them: those
// for clouds, volumes, certificates and devices, which these nodes have not;
// node-ipam, as nodes register with their Pod CIDRs; service-cidr, which the API
// server runs beside the Service registry; and upstream's three for
// endpoints, in whose place is ours.
var table = []row{
	// Workloads.
	{"deployment", "deployment-controller", func(ctx context.Context, e *env) (func(context.Context), error) {
		c, err := deployment.NewDeploymentController(ctx, e.informers.Apps().V1().Deployments(), e.informers.Apps().V1().ReplicaSets(),
			e.informers.Core().V1().Pods(), e.client)
		return workers(5, c, err)
	}},
	{"replicaset", "replicaset-controller", func(ctx context.Context, e *env) (func(context.Context), error) {
		return workers(5, replicaset.NewReplicaSetController(ctx, e.informers.Apps().V1().ReplicaSets(), e.informers.Core().V1().Pods(),
			e.client, replicaset.BurstReplicas), nil)
	}},
	{"statefulset", "statefulset-controller", func(ctx context.Context, e *env) (func(context.Context), error) {
		return workers(5, statefulset.NewStatefulSetController(ctx, e.informers.Core().V1().Pods(), e.informers.Apps().V1().StatefulSets(),
			e.informers.Core().V1().PersistentVolumeClaims(), e.informers.Apps().V1().ControllerRevisions(), e.client), nil)
	}},
	{"daemonset", "daemon-set-controller", func(ctx context.Context, e *env) (func(context.Context), error) {
		c, err := daemon.NewDaemonSetsController(ctx, e.informers.Apps().V1().DaemonSets(), e.informers.Apps().V1().ControllerRevisions(),
			e.informers.Core().V1().Pods(), e.informers.Core().V1().Nodes(), e.client, flowcontrol.NewBackOff(time.Second, 15*time.Minute))
		return workers(2, c, err)
	}},
	{"replicationcontroller", "replication-controller", func(ctx context.Context, e *env) (func(context.Context), error) {
		return workers(2, replication.NewReplicationManager(ctx, e.informers.Core().V1().Pods(), e.informers.Core().V1().ReplicationControllers(),
			e.client, replication.BurstReplicas), nil)
	}},
	{"job", "job-controller", func(ctx context.Context, e *env) (func(context.Context), error) {
		c, err := job.NewController(ctx, e.client, e.informers.Core().V1().Pods(), e.informers.Batch().V1().Jobs(), nil, nil)
		return workers(5, c, err)
	}},
	{"cronjob", "cronjob-controller", func(ctx context.Context, e *env) (func(context.Context), error) {
		c, err := cronjob.NewControllerV2(ctx, e.informers.Batch().V1().Jobs(), e.informers.Batch().V1().CronJobs(), e.client)
		return workers(2, c, err)
	}},
	{"ttl-after-finished", "ttl-after-finished-controller", func(ctx context.Context, e *env) (func(context.Context), error) {
		return workers(2, ttlafterfinished.New(ctx, e.informers.Batch().V1().Jobs(), e.client), nil)
	}},
	{"disruption", "disruption-controller", buildDisruption},

	// Pods and Nodes.
	{"pod-garbage-collector", "pod-garbage-collector", func(ctx context.Context, e *env) (func(context.Context), error) {
		const keepEnded = 12500 // Pods, as upstream
		return podgc.New(e.client, e.informers.Core().V1().Pods(), e.informers.Core().V1().Nodes(), keepEnded, e.Logger).Run, nil
	}},
	{"node-lifecycle", "node-controller", func(ctx context.Context, e *env) (func(context.Context), error) {
		// Taints follow at once: the rates that keep a large cluster from
		// panicking (0.1 Nodes a second, none in a small zone that is mostly
		// down) would only delay a small one.
		const perSecond, largeZone, mostlyDown = 100, 50, 0.55
		c, err := nodelifecycle.NewNodeLifecycleController(ctx, e.informers.Coordination().V1().Leases(), e.informers.Core().V1().Pods(),
			e.informers.Core().V1().Nodes(), e.informers.Apps().V1().DaemonSets(), e.client,
			e.Nodes.Monitor, e.Nodes.StartupGrace, e.Nodes.Grace, perSecond, perSecond, largeZone, mostlyDown)
		if err != nil {
			return nil, err
		}
		return c.Run, nil
	}},
	{"taint-eviction", "node-controller", func(ctx context.Context, e *env) (func(context.Context), error) {
		c, err := tainteviction.New(ctx, e.client, e.informers.Core().V1().Pods(), e.informers.Core().V1().Nodes(), "taint-eviction-controller")
		if err != nil {
			return nil, err
		}
		return c.Run, nil
	}},
	{"ttl", "ttl-controller", func(ctx context.Context, e *env) (func(context.Context), error) {
		return workers(1, ttl.NewTTLController(ctx, e.informers.Core().V1().Nodes(), e.client), nil)
	}},

	// Objects as such.
	{"garbage-collector", "generic-garbage-collector", buildGarbageCollector},
	{"namespace", "namespace-controller", buildNamespace},
	{"resourcequota", "resourcequota-controller", buildQuota},
	{"persistentvolumeclaim-protection", "pvc-protection-controller", func(ctx context.Context, e *env) (func(context.Context), error) {
		c, err := pvcprotection.NewPVCProtectionController(klog.FromContext(ctx), e.informers.Core().V1().PersistentVolumeClaims(),
			e.informers.Core().V1().Pods(), e.client)
		return workers(1, c, err)
	}},
	{"persistentvolume-protection", "pv-protection-controller", func(ctx context.Context, e *env) (func(context.Context), error) {
		c, err := pvprotection.NewPVProtectionController(klog.FromContext(ctx), e.informers.Core().V1().PersistentVolumes(), e.client)
		return workers(1, c, err)
	}},

	// Rights and identities.
	{"serviceaccount", "service-account-controller", func(ctx context.Context, e *env) (func(context.Context), error) {
		c, err := serviceaccount.NewServiceAccountsController(klog.FromContext(ctx), e.informers.Core().V1().ServiceAccounts(),
			e.informers.Core().V1().Namespaces(), e.client, serviceaccount.DefaultServiceAccountsControllerOptions())
		return workers(1, c, err)
	}},
	{"serviceaccount-token", "", func(ctx context.Context, e *env) (func(context.Context), error) {
		if e.TokenKey == nil {
			return nil, nil
		}
		generator, err := tokens.JWTTokenGenerator(tokens.LegacyIssuer, e.TokenKey)
		if err != nil {
			return nil, err
		}
		c, err := serviceaccount.NewTokensController(klog.FromContext(ctx), e.informers.Core().V1().ServiceAccounts(),
			e.informers.Core().V1().Secrets(), e.client, serviceaccount.TokensControllerOptions{TokenGenerator: generator, RootCA: e.RootCA})
		return workers(1, c, err)
	}},
	{"root-ca-certificate-publisher", "root-ca-cert-publisher", func(ctx context.Context, e *env) (func(context.Context), error) {
		if len(e.RootCA) == 0 {
			return nil, nil
		}
		c, err := rootcacertpublisher.NewPublisher(e.informers.Core().V1().ConfigMaps(), e.informers.Core().V1().Namespaces(), e.client, e.RootCA)
		return workers(1, c, err)
	}},
	{"clusterrole-aggregation", "clusterrole-aggregation-controller", func(ctx context.Context, e *env) (func(context.Context), error) {
		return workers(1, clusterroleaggregation.NewClusterRoleAggregation(e.informers.Rbac().V1().ClusterRoles(), e.client.RbacV1()), nil)
	}},
}

// workers runs a controller that is told its number of workers.
func workers(n int, c interface{ Run(context.Context, int) }, err error) (func(context.Context), error) {
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, n) }, nil
}

func buildDisruption(ctx context.Context, e *env) (func(context.Context), error) {
	scales, err := scale.NewForConfig(e.config, e.mapper, dynamic.LegacyAPIPathResolverFunc, scale.NewDiscoveryScaleKindResolver(e.client.Discovery()))
	if err != nil {
		return nil, err
	}
	return workers(2, disruption.NewDisruptionController(ctx, e.informers.Core().V1().Pods(), e.informers.Policy().V1().PodDisruptionBudgets(),
		e.informers.Core().V1().ReplicationControllers(), e.informers.Apps().V1().ReplicaSets(), e.informers.Apps().V1().Deployments(),
		e.informers.Apps().V1().StatefulSets(), e.client, e.mapper, scales, e.client.Discovery()), nil)
}
