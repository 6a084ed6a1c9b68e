{{- define "portolan.name" -}}
{{ default "portolan" .Values.fullnameOverride }}
{{- end }}

{{- define "portolan.labels" -}}
app.kubernetes.io/name: {{ include "portolan.name" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "portolan.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default (printf "v%s" $.Chart.AppVersion) .tag }}
{{- end }}
{{- end }}
{{- end }}

{{- define "portolan.cniConf" -}}
{{- if and .Values.overlay.enabled .Values.cni.install -}}
/etc/cni/net.d/{{ .Values.cni.confName }}
{{- end }}
{{- end }}

{{- define "portolan.clusterCIDR" -}}
{{ compact (list .Values.podCidr .Values.podCidrv6) | join "," }}
{{- end }}

{{- /* The first document of the file: what the values imply, then `config` over it. */ -}}
{{- define "portolan.kubeProxyConfiguration" -}}
{{- $config := dict "apiVersion" "kubeproxy.config.k8s.io/v1alpha1" "kind" "KubeProxyConfiguration" -}}
{{- $cidr := include "portolan.clusterCIDR" . -}}
{{- if $cidr -}}
{{- $_ := set $config "clusterCIDR" $cidr -}}
{{- else if not (hasKey (default dict .Values.config) "clusterCIDR") -}}
{{- $_ := set $config "detectLocalMode" "NodeCIDR" -}}
{{- end -}}
{{- if .Values.serviceProxy.enabled -}}
{{- $_ := set $config "healthzBindAddress" "0.0.0.0:10256" -}}
{{- $_ := set $config "metricsBindAddress" "0.0.0.0:10249" -}}
{{- else -}}
{{- $_ := set $config "healthzBindAddress" "127.0.0.1:20256" -}}
{{- $_ := set $config "metricsBindAddress" "0.0.0.0:20249" -}}
{{- end -}}
{{- toYaml (mergeOverwrite $config (deepCopy (default dict .Values.config))) -}}
{{- end }}

{{- /* The second document. */ -}}
{{- define "portolan.portolanConfiguration" -}}
{{- $config := dict "apiVersion" "portolan.io/v1alpha1" "kind" "PortolanConfiguration" -}}
{{- if .Values.kubeletKubeconfig -}}
{{- $_ := set $config "apiServerFrom" (list "/run/portolan/api-server.kubeconfig") -}}
{{- end -}}
{{- if not .Values.serviceProxy.enabled -}}
{{- $_ := set $config "serviceProxy" "off" -}}
{{- end -}}
{{- if .Values.overlay.enabled -}}
{{- $overlay := dict "type" "vxlan" "ipMasq" .Values.overlay.ipMasq -}}
{{- with include "portolan.cniConf" . }}{{ $_ := set $overlay "cniConf" . }}{{ $_ := set $overlay "cniBinDir" $.Values.cni.binDir }}{{ end -}}
{{- if ne .Values.overlay.encryption "off" -}}
{{- $_ := set $overlay "encryption" .Values.overlay.encryption -}}
{{- end -}}
{{- if .Values.overlay.netConf -}}
{{- $_ := set $overlay "netConfigPath" "/var/lib/portolan/net-conf.json" -}}
{{- end -}}
{{- $_ := set $config "overlay" $overlay -}}
{{- end -}}
{{- toYaml (mergeOverwrite $config (deepCopy (default dict .Values.portolanConfig))) -}}
{{- end }}

{{- /* A listener of the first document as [host, port], from "IP", "IP:PORT", "[IPv6]:PORT" or "", as Portolan reads it. */ -}}
{{- define "portolan.listener" -}}
{{- $config := include "portolan.kubeProxyConfiguration" .root | fromYaml -}}
{{- $address := default "" (index $config .field) -}}
{{- $port := ternary "10256" "10249" (eq .field "healthzBindAddress") -}}
{{- $host := $address -}}
{{- if regexMatch "^(\\[.*\\]|[^:]*):[0-9]+$" $address -}}
{{- $port = regexFind "[0-9]+$" $address -}}
{{- $host = regexReplaceAll ":[0-9]+$" $address "" -}}
{{- end -}}
{{- list ($host | trimPrefix "[" | trimSuffix "]") $port | toJson -}}
{{- end }}

{{- define "portolan.port" -}}
{{- include "portolan.listener" . | fromJsonArray | last -}}
{{- end }}

{{- /* Where the kubelet, in the node's own network, asks for health: loopback for a wildcard. */ -}}
{{- define "portolan.healthHost" -}}
{{- $host := include "portolan.listener" (dict "root" . "field" "healthzBindAddress") | fromJsonArray | first -}}
{{- ternary "127.0.0.1" $host (has $host (list "" "0.0.0.0" "::")) -}}
{{- end }}

{{- define "portolan.check" -}}
{{- if not (or .Values.serviceProxy.enabled .Values.overlay.enabled) -}}
{{- fail "serviceProxy.enabled and overlay.enabled are both false: there is nothing to run" -}}
{{- end -}}
{{- if .Values.overlay.enabled -}}
{{- if not (or .Values.podCidr .Values.podCidrv6 (get (default dict .Values.config) "clusterCIDR")) -}}
{{- fail "overlay.enabled needs podCidr, podCidrv6 or both: the pod CIDRs of the cluster (kubectl -n kube-system get cm kubeadm-config -o yaml, podSubnet)" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.kubeProxyService.enabled (ne .Release.Namespace "kube-system") -}}
{{- fail "kubeProxyService.enabled needs a release in kube-system: kube-prometheus-stack looks for kube-proxy's Service there, and a Service selects pods of its own namespace" -}}
{{- end -}}
{{- end }}

{{- define "portolan.cleanupContainer" -}}
image: {{ include "portolan.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  runAsUser: 0
  runAsGroup: 0
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  # Every table is nf_tables: NET_ADMIN is enough, whatever Portolan did here.
  capabilities: {drop: [ALL], add: [NET_ADMIN]}
resources:
  requests: {cpu: 10m, memory: 16Mi}
  limits: {memory: 64Mi}
{{- end }}
