{{- define "llem.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* The release's name, which most people choose to be the chart's; short, since names are made of it. */ -}}
{{- define "llem.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "llem.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "llem.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Name of an object that belongs to no namespace. */ -}}
{{- define "llem.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "llem.fullname" .) -}}
{{- end -}}

{{- /* Call with (dict "root" $ "component" "operator"). */ -}}
{{- define "llem.selector" -}}
app.kubernetes.io/name: {{ include "llem.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "llem.labels" -}}
{{ include "llem.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Labels and, if there are any, annotations of an object: call with root, component, annotations. */ -}}
{{- define "llem.metadata" -}}
labels:
  {{- include "llem.labels" . | nindent 2 }}
{{- with merge (dict) (default (dict) .annotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "llem.crdMetadata" -}}
{{- include "llem.metadata" (dict "root" . "component" "api" "annotations" (merge (dict "helm.sh/resource-policy" "keep") .Values.crds.annotations)) }}
{{- end -}}

{{- /* An image of llem's own: call with root and image. */ -}}
{{- define "llem.image" -}}
{{- $name := .image.repository -}}
{{- with .root.Values.imageRegistry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $name }}{{ end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "llem.serviceAccount" -}}
{{- if .Values.operator.serviceAccount.name -}}
{{- .Values.operator.serviceAccount.name -}}
{{- else -}}
{{- ternary (include "llem.fullname" .) "default" .Values.operator.serviceAccount.create -}}
{{- end -}}
{{- end -}}

{{- define "llem.runnerServiceAccount" -}}
{{- if .Values.runner.serviceAccount.name -}}
{{- .Values.runner.serviceAccount.name -}}
{{- else if .Values.runner.serviceAccount.create -}}
{{- include "llem.fullname" . }}-runner
{{- end -}}
{{- end -}}

{{- /* Watched namespaces as JSON, empty for the whole cluster. */ -}}
{{- define "llem.namespaces" -}}
{{- if .Values.clusterWide -}}
[]
{{- else -}}
{{- default (list .Release.Namespace) .Values.watchNamespaces | uniq | toJson -}}
{{- end -}}
{{- end -}}

{{- define "llem.lease" -}}
{{ include "llem.fullname" . }}-leader
{{- end -}}

{{- /* Where results go by default, as JSON in the shape of spec.results. */ -}}
{{- define "llem.results" -}}
{{- if .Values.results -}}
{{- toJson .Values.results -}}
{{- else if .Values.objectStore.enabled -}}
{{- $host := printf "%s-store.%s.svc" (include "llem.fullname" .) .Release.Namespace -}}
{{- dict "uri" (printf "s3://%s" .Values.objectStore.bucket)
         "endpoint" (printf "http://%s:%v" $host (int .Values.objectStore.port))
         "region" .Values.objectStore.region
         "credentialsSecretRef" (dict "name" .Values.objectStore.existingSecret) | toJson -}}
{{- else -}}
{}
{{- end -}}
{{- end -}}

{{- define "llem.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "llem.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* What no schema can say. */ -}}
{{- define "llem.check" -}}
{{- if and .Values.clusterWide .Values.watchNamespaces -}}
{{- fail "clusterWide: true watches every namespace; leave watchNamespaces empty" -}}
{{- end -}}
{{- if .Values.objectStore.enabled -}}
{{- if not .Values.objectStore.existingSecret -}}
{{- fail "objectStore.existingSecret: name a Secret with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (values.yaml shows how to make it)" -}}
{{- end -}}
{{- if and (ne (include "llem.namespaces" .) (list .Release.Namespace | toJson)) (not .Values.results) -}}
{{- fail (printf "objectStore serves namespace %s only, since its Secret is there; set results for the others, or watch only that one" .Release.Namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
